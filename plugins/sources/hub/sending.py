"""What is sent to the Hub: the files of a commit, how far they are, and their digests, which one try finds for the next."""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd
from huggingface_hub.lfs import UploadInfo

from ....state.errors import Unavailable

PIECE = 2**20  # bytes that are read at once for a digest
SAMPLE = 512  # bytes by which the Hub tells a text
MOST = 4096  # digests that are known


class Digests:
    """The sha256 of files that were read once: published files never change, and a try may be one of many."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], bytes] = {}

    def of(self, file: "Sent") -> bytes:
        """Return the digest of a file, whose reading it is if nobody knows it."""
        known = self._known.get(file.stamp)
        if known is None:
            read = hashlib.sha256()
            while piece := file.read(PIECE):
                read.update(piece)
            file.seek(0)
            known = self._known[file.stamp] = read.digest()
            if len(self._known) > MOST:
                del self._known[next(iter(self._known))]
        return known


class Sent(io.BufferedReader):
    """A file that is sent: the client reads it, and so we know how far it is, and can end it."""

    def __init__(self, path: Path, stopped: Callable[[], bool], digests: Digests) -> None:
        """`stopped` is asked at each read."""
        super().__init__(io.FileIO(path))
        stat = path.stat()
        self._path, self._stopped, self._digests, self.size = path, stopped, digests, stat.st_size
        self.stamp = (str(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        self.advance: Callable[[], None] = lambda: None

    def named(self, folder: Path) -> str:
        """Return what it is called in a folder."""
        return self._path.relative_to(folder).as_posix()

    @property
    def info(self) -> UploadInfo:
        """What the client wants to know of it before it is sent."""
        sample = self.read(SAMPLE)
        self.seek(0)
        return UploadInfo(size=self.size, sample=sample, sha256=self._digests.of(self))

    def read(self, size: int | None = -1, /) -> bytes:
        """Read on. Raises Unavailable if it is to end."""
        if self._stopped():
            raise Unavailable("stopping", "it goes on at the next start")
        self.advance()
        return super().read(size)


class Addition(CommitOperationAdd):
    """A file of a commit; the client itself would read it anew at every try, to learn its digest."""

    def __post_init__(self) -> None:
        """Tell the client what it would read."""
        assert isinstance(self.path_or_fileobj, Sent)
        self.upload_info = self.path_or_fileobj.info


class Progress:
    """How far the files of a commit are."""

    def __init__(self, files: Sequence[Sent], tell: Callable[[str], None]) -> None:
        """`tell` is told, in words."""
        self._files, self._tell, self._done = files, tell, 0
        for file in files:
            file.advance = self._say
        self._say()

    def next_file(self) -> None:
        """Note that one more is there."""
        self._done += 1
        self._say()

    def _say(self) -> None:
        current = self._files[self._done : self._done + 1]
        sent = sum(file.size for file in self._files[: self._done]) + sum(file.tell() for file in current)
        share = sent / max(sum(file.size for file in self._files), 1)
        self._tell(f"{self._done} of {len(self._files)} files, {share:.0%}".replace("%", " %"))
