"""The commit protocol: the steps by which a draft becomes the version that is served, and what a crash after each leaves.

draft -> seal -> rename -> transaction -> link -> sweep. A version is true from `transaction` on, and not a moment before;
whatever a crash leaves, `recover` brings to either side of it, and may be interrupted and done again.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from .archive import Archive
from .disk_errors import meaning
from .errors import Damaged, Unavailable
from .history import History
from .records import Files, Move
from .store import Draft, Store

log = logging.getLogger(__name__)

Stamps = Mapping[str, tuple[int, int]]  # size and time of each file


class Commit:
    """The steps, over one state's files and history. `draft` and `seal` touch files alone, and may run on any thread."""

    def __init__(self, store: Store, history: History) -> None:
        self._store, self._history, self._archive = store, history, Archive(store)
        self._going: set[tuple[int, Files]] = set()  # promised no more, and still there

    def draft(self, number: int, step: str = "") -> Draft:
        """Open an empty draft of a version, or of a step on the way to it. A crash leaves it, worth nothing."""
        return self._store.draft(number, step)

    def seal(self, draft: Draft, manifest: Mapping[str, Any]) -> None:
        """Write the manifest last, and make every file and name of the draft durable. A crash leaves a draft."""
        draft.seal(manifest)

    def rename(self, draft: Draft, number: int, source: str = "") -> None:
        """Rename the draft in, and the source that it pins. A crash leaves folders that the history has no row for.

        source: the digest of the checkpoint's content.
        """
        if source:
            self._archive.install(draft, source)
        self._store.install(draft, number)

    def restore(self, draft: Draft, number: int, task: int) -> None:
        """Put files that were made once more into the place of a version's, and promise them again."""
        self._going -= {(number, "slots"), (number, "model")}  # what the disk would not let go of is wanted again
        self._store.restore(draft, number)
        self._history.commit_restored(number, self._store.stamps(number), task)

    def transaction(self, write: Callable[[History], Move]) -> Move:
        """Make the version true, and the head move to it: the commit point. A crash leaves a link that lags behind.

        write: one of the history's `commit_` methods, with its arguments.
        """
        return write(self._history)

    def install(self, draft: Draft, number: int, write: Callable[[History, Stamps], Move], source: str = "") -> Move:
        """Rename a draft in and make it true; where there is no room for that, nothing has happened.

        write: as for `transaction`; it is also given the stamps of the files, as they were renamed in.
        """
        try:
            self.rename(draft, number, source)
            stamps = self._store.stamps(number)
            return self.transaction(lambda history: write(history, stamps))
        except Exception as error:
            if isinstance(meaning(error), Unavailable):  # then nothing was committed
                self._store.uninstall(draft, number)
            raise

    def link(self) -> None:
        """Let `models/current` follow the head."""
        head = self._history.head()
        if head is not None and self._store.pointed() != head.number:
            self._store.point(head.number)

    def sweep(self, number: int, what: Files) -> None:
        """Let go of a version's files: first the promise is withdrawn, then they go. A crash leaves files unpromised.

        What the disk does not let go of is tried again later, and at the next start.
        """
        self._history.drop_files(number, what)
        self._going.add((number, what))
        self.sweep_rest()

    def sweep_rest(self) -> None:
        """Try again to remove what the disk has not let go of."""
        self._going = {part for part in self._going if not self._goes(*part)}

    def _goes(self, number: int, what: Files) -> bool:
        try:
            self._store.drop(number, what)
        except OSError as error:
            log.error("the %s of v%d cannot be deleted yet: %s", what, number, error)
            return False
        return True

    # ------------------------------------------------------------------------------------------------------ recovery

    def recover(self) -> None:
        """Remove what no row promises, and set the link. Raises Damaged if the history is older than the files."""
        self._check_age()
        versions = self._history.versions()
        kept = {part: [v.number for v in versions if v.keeps(part)] for part in ("slots", "model")}
        for path in self._store.sweep((v.number for v in versions), kept["slots"], kept["model"]):
            log.info("swept %s", path)
        if all(version.is_known for version in versions):  # else a source may be of what nobody knows of
            self._archive.keep(self._history.checkpoints.folded_digests())
        self.link()

    def _check_age(self) -> None:
        ahead = [number for number in self._store.numbers() if number > self._history.next_number()]
        if ahead:
            raise Damaged(
                f"versions up to {max(ahead)} lie in {self._store.versions}, which the history does not know",
                "it is older than its files: bring the newer mergd.db back, or: mergd rebuild --force; nothing was removed",
            )
