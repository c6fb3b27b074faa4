"""Verifying: what people ask to have read again, and what is told them once it was; what was found is in the history."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..state.errors import MergdError
from ..state.history import History
from ..state.records import Version
from ..state.store import PARTS, Store
from .auditing import Fault, audit, readable
from .checker import Pace, check_version
from .control import Ask
from .naming import find_version
from .requests import Verify


@dataclass
class _Asked:
    """Somebody who waits."""

    ask: Ask
    todo: list[int]  # versions
    faults: list[Fault]
    read: list[int] = field(default_factory=list)


class Verifying:
    """Those who asked, in order."""

    def __init__(self, store: Store, history: History) -> None:
        self._store, self._history = store, history
        self._asked: list[_Asked] = []

    def begin(self, ask: Ask, request: Verify) -> None:
        """Look at the database and the folders at once; the files are read one version after the other."""
        versions = chosen(self._history, self._store, request)
        faults = audit(self._history, self._store, versions)
        self._asked.append(_Asked(ask, [version.number for version in versions if has_files(version)], faults))
        self._answer()

    def next(self) -> Version | None:
        """Return the version whose turn it is, if anybody waits for one."""
        for asked in self._asked:
            while asked.todo:
                version = self._history.version(asked.todo[0])
                if version is not None and has_files(version):
                    return version
                del asked.todo[0]  # retention let it go meanwhile
        self._answer()
        return None

    def found(self, version: Version, files: Sequence[str]) -> None:
        """Take what a check of a version found."""
        for asked in self._asked:
            if version.number in asked.todo:
                asked.todo.remove(version.number)
                asked.read.append(version.number)
                asked.faults += [fault for file in files if (fault := _spoilt(file)).what not in _named(asked.faults)]
                asked.ask.progress(f"{version}: {len(files)} damaged files" if files else f"{version} is sound")
        self._answer()

    def _answer(self) -> None:
        for asked in [asked for asked in self._asked if not asked.todo]:
            self._asked.remove(asked)
            asked.ask.result(answer(self._history, asked.faults, asked.read))

    def close(self, error: MergdError) -> None:
        """Tell those who still wait why there will be no answer."""
        for asked in self._asked:
            asked.ask.error(error)
        self._asked.clear()


def verify_here(request: Verify, history: History, store: Store) -> dict[str, Any]:
    """Do all of it at once, where no daemon runs."""
    versions = chosen(history, store, request)
    faults, read = audit(history, store, versions), []
    for version in filter(has_files, versions):
        found = check_version(store, version.number, [part for part in PARTS if version.keeps(part)], Pace())
        if found.damaged:
            history.checks.damaged(version.number, found.damaged)
        else:
            history.checks.sound(version.number, found.stamps)
        faults += [fault for file in found.damaged if (fault := _spoilt(file)).what not in _named(faults)]
        read.append(version.number)
    return answer(history, faults, read)


def chosen(history: History, store: Store, request: Verify) -> list[Version]:
    """Return the versions that a request is about. Raises Usage, and Damaged where rows cannot be read."""
    with readable(store):
        return [find_version(history, request.version)] if request.version else history.versions()


def has_files(version: Version) -> bool:
    """Whether any part of it is kept."""
    return any(version.keeps(part) for part in PARTS)


def answer(history: History, faults: Sequence[Fault], read: Sequence[int]) -> dict[str, Any]:
    """Return what is told: what was found, what was read, and where the head could go."""
    others = history.besides_head()
    return {
        "sound": not any(fault.damage for fault in faults),
        "faults": [vars(fault) for fault in faults],
        "read": list(read),
        "nearest": others[0].number if others else None,
    }


def _spoilt(file: str) -> Fault:
    return Fault(file, "is not as it was written")


def _named(faults: Sequence[Fault]) -> set[str]:
    return {fault.what for fault in faults}
