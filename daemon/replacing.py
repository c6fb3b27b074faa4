"""Replacing: what a fold starts from if its checkpoint counts in the stead of one that is in the model. A pure plan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..state.records import Checkpoint, Reason, Version
from ..state.wording import decide, quoted


@dataclass(frozen=True)
class Start:
    """What a fold starts from."""

    parent: Version | None  # none: from nothing
    replaced: Version | None = None  # the head, if that is what the new version stands in for
    held: Reason | None = None  # why it cannot be replaced now

    @property
    def head(self) -> Version | None:
        """The head of that moment."""
        return self.replaced or self.parent


def plan(
    row: Checkpoint,
    line: Sequence[Version],
    get: Callable[[int], Checkpoint],
    in_model: Callable[[int], bool] = lambda checkpoint: True,
) -> Start:
    """Return what the fold of a ready checkpoint that replaces another one starts from.

    line: the head and its ancestors, newest first. get: returns the row of a checkpoint by its id. in_model: whether one
    that was folded in the line is still in the model, by its id.
    Only what the head itself folded is replaced: nothing was folded onto it. Who asks for a fold gets one all the same.
    """
    head = line[0] if line else None
    folds = [version for version in line if version.checkpoint is not None and in_model(version.checkpoint)]
    old = _in_line(row, folds, get)
    if old is None:
        return Start(head)
    parent = next((version for version in line if version.number == old.parent), None)
    possible = parent is None or parent.slots_kept
    if old is head and possible:
        return Start(parent, replaced=head)
    if row.urgent is not None:
        return Start(head)
    return Start(head, held=_later(row, old, line, get) if possible and old.kept else _dropped(row, old))


def _in_line(row: Checkpoint, line: Sequence[Version], get: Callable[[int], Checkpoint]) -> Version | None:
    """Return the version that folded the content that a row replaces; of what never was, what that would replace."""
    while row.replaces is not None:
        row = get(row.replaces)
        for version in line if row.digest is not None else ():
            if version.checkpoint is not None and get(version.checkpoint).digest == row.digest:
                return version
    return None


def _later(row: Checkpoint, old: Version, line: Sequence[Version], get: Callable[[int], Checkpoint]) -> Reason:
    """Say what was folded since, and the commands that let a checkpoint replace another one all the same."""
    since = [version for version in reversed(line) if version.number > old.number]
    if any(version.checkpoint is None for version in since):
        return _reread(row, old, since, get)
    later = [get(version.checkpoint) for version in since if version.checkpoint is not None]
    what = f"{len(later)} folded" if later else f"{len(since)} made"
    names = ", ".join(other.name for other in later) or ", ".join(map(str, since))
    again = "".join(f" {quoted(other.place)}" for other in later)
    return Reason(
        "replace-later",
        f"{what} since {old}, in whose stead it would count: {names}",
        f"that {old} is the head",
        f"{decide(row.place)}; for it to replace that one: mergd rollback {old}; mergd fold {quoted(row.place)}"
        + (f"; mergd fold --again{again}" if again else ""),
    )


def _reread(row: Checkpoint, old: Version, since: Sequence[Version], get: Callable[[int], Checkpoint]) -> Reason:
    """Say what came since, of which a person asked for some: a rollback would undo that, and a removal does not.

    By folding the others: what was at its place may have been what replaces it now.
    """
    names = (get(v.checkpoint).name if v.checkpoint is not None else f"{v} ({v.cause})" for v in since)
    assert old.checkpoint is not None
    return Reason(
        "replace-later",
        f"since {old}, in whose stead it would count: {', '.join(names)}",
        f"that {old} is the head",
        f"{decide(row.place)}; for it to replace that one: mergd remove {get(old.checkpoint).digest} --exact; "
        f"mergd approve {quoted(row.place)}",
    )


def _dropped(row: Checkpoint, old: Version) -> Reason:
    found = f"that the files of {old}, or those before it, were dropped by retention"
    return Reason("replace-later", found, f"slots to fold onto in the stead of {old}", decide(row.place))
