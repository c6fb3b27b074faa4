"""Two ways to break the commit protocol on purpose, in a child alone: the harness must find each of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mergd.state.committing import Commit
from mergd.state.history import History
from mergd.state.store import Draft, folder_name, sync_folder


def commit_before_rename() -> None:
    """Make the version true first, and rename its files in afterwards."""
    rename = Commit.rename
    waiting: list[tuple[Path, Path]] = []

    def aside(self: Commit, draft: Draft, number: int, source: str = "") -> None:
        rename(self, draft, number, source)  # once, because the files' stamps are asked for before the transaction
        store = self._store
        waiting[:] = [
            (place / folder_name(number), store.drafts / f"{place.name}-{number}")
            for place in (store.versions, store.models)
        ]

    def first(self: Commit, write: Callable[[History], Any]) -> Any:
        for place, late in waiting:
            place.rename(late)
        move = write(self._history)
        for place, late in waiting:
            late.rename(place)
            sync_folder(place.parent)
        return move

    Commit.rename, Commit.transaction = aside, first  # type: ignore[method-assign]


def row_outside() -> None:
    """Write the version's row by itself, before the transaction that should hold it."""
    insert, commit_fold = History._insert, History.commit_fold

    def outside(self: History, version: Any, digest: str, weights: Any, *more: Any) -> Any:
        insert(self, version, weights)
        return commit_fold(self, version, digest, weights, *more)

    def nothing(self: History, version: Any, weights: Any) -> None:
        pass

    History.commit_fold = outside  # type: ignore[method-assign, assignment]
    History._insert = nothing  # type: ignore[method-assign]


BROKEN: dict[str, Callable[[], None]] = {
    "commit before rename": commit_before_rename,
    "version's row outside of the transaction": row_outside,
}
