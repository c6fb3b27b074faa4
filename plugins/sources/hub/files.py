"""Which files of a repository count at one commit, and what the Hub says that they hold."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import HfApi

from ....state.errors import Refused, Unavailable
from ....state.records import Reason
from ....state.wording import size
from ...formats._files import never_read
from .client import answering, within

SMALL = ("config.json", "adapter_config.json", "checkpoint.toml")
TOKENS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model")
LARGEST_SMALL, MOST_SMALL = 64 * 2**20, 128 * 2**20  # bytes: of one file that holds no weights, and of all
MOST_FILES = 1000  # of a repository
WEIGHTS, INDEX = ".safetensors", ".safetensors.index.json"
NAME = re.compile(r"[\w][\w.+-]*", re.ASCII)
STEP = 30.0  # seconds for a short call


@dataclass(frozen=True)
class Remote:
    """One file of a repository at a commit."""

    name: str
    size: int  # bytes
    sha256: str  # of its content; empty where the Hub says none
    blob: str  # git's digest of it
    header: str = ""  # sha256 of a weight file's header, once that is here

    @property
    def has_weights(self) -> bool:
        """Whether weights are in it, by its name."""
        return self.name.endswith(WEIGHTS)

    def begin_sum(self) -> Any:
        """Begin the digest of its bytes, of the kind that the Hub gives."""
        return hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def check(self, repo: str, digest: Any) -> None:
        """Raise Unavailable if what came is not what the Hub says that it is."""
        if digest.hexdigest() != (self.sha256 or self.blob):
            found = f"{self.name} of {repo} came with other bytes than the Hub's digest says"
            raise Unavailable(found, "it is fetched again")


@dataclass(frozen=True)
class Repository:
    """A repository at a commit, and the files of it that count."""

    repo: str
    commit: str
    files: tuple[Remote, ...]
    never_read: tuple[str, ...] = ()  # names of files whose weights are of a kind that is never read

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return sum(file.size for file in self.files if file.has_weights)

    @property
    def holds(self) -> str:
        """What its files hold, by the Hub's digests: the same text for the same weights, and what says how they are meant."""
        return _digest((file.name, file.sha256 or file.blob) for file in self.files)

    @property
    def told(self) -> str:
        """What a sighting says of its files: what they hold, then how the weights lie in them, and which they are."""
        weights = [file for file in self.files if file.has_weights]
        lie = _digest((file.name, file.header) for file in weights)
        return f"{self.holds}.{lie}.{_digest((file.name, file.sha256 or file.blob) for file in weights)}"

    def only(self, names: Collection[str]) -> "Repository":
        """Return it with these weight files alone."""
        return replace(self, files=tuple(file for file in self.files if not file.has_weights or file.name in names))


def _digest(pairs: Iterable[tuple[str, str]]) -> str:
    return hashlib.sha256(repr(sorted(pairs)).encode()).hexdigest()


def files_of(
    repo: str, commit: str, stopped: Callable[[], bool] = lambda: False, *, tokens: bool = False
) -> Repository:
    """Ask which files of a commit count: its weights, what says how they are meant, and its `tokens` if wanted.

    Only what lies in its topmost folder does: the rest are other frameworks' copies. Pickles are never fetched. Raises
    Refused where there is too much besides the weights.
    """
    with answering(repo), within(STEP, stopped):
        siblings = HfApi().model_info(repo, revision=commit, files_metadata=True).siblings or []
    small = SMALL + (TOKENS if tokens else ())
    named = [sibling for sibling in siblings if NAME.fullmatch(sibling.rfilename)]
    found = [
        Remote(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else "", s.blob_id or "")
        for s in named
        if s.rfilename in small or s.rfilename.endswith((WEIGHTS, INDEX))
    ]
    counting = tuple(file for file in found if file.has_weights or file.size <= LARGEST_SMALL)
    _check_bounds(counting)
    never = sorted(s.rfilename for s in named if never_read(s.rfilename))
    return Repository(repo, commit, counting, tuple(never[:MOST_FILES]))


def _check_bounds(files: Collection[Remote]) -> None:
    if len(files) > MOST_FILES:
        raise too_much(f"{len(files):,} files", f"{MOST_FILES:,}")
    nbytes = sum(file.size for file in files if not file.has_weights)
    if nbytes > MOST_SMALL:
        raise too_much(f"{size(nbytes)} of configuration, indexes and vocabulary", size(MOST_SMALL))


def too_much(found: str, most: str) -> Refused:
    """Return why a repository is refused that would cost more than a checkpoint does, before it is judged."""
    return Refused(Reason("too-large", found, f"at most {most}", "push the model alone, in fewer and larger files"))
