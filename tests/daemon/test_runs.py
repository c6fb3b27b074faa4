"""Runs as a table: what a scan saw of one training, what the history has of it, and who may count."""

from dataclasses import replace

import pytest

from mergd.daemon.runs import FREE, PerRun, Turn, plan
from mergd.state.records import Checkpoint, CheckpointState, FileStamp, Sighting

RUN = "/watch/alpha"
QUIET = "quiet for 30 min"


def sighting(step: int | None) -> Sighting:
    """Return a step of the run, or its final model."""
    place = RUN if step is None else f"{RUN}/checkpoint-{step}"
    return Sighting("directory", place, place.removeprefix("/watch/"), (), RUN, step)


def row(number: int, state: CheckpointState, step: int | None, folder: str = RUN) -> Checkpoint:
    """Return what the history has of a step."""
    place = folder if step is None else f"{folder}/checkpoint-{step}"
    return Checkpoint(number, "directory", place, place.removeprefix("/watch/"), "", state, "")


def said(turn: Turn) -> str:
    """Return a turn in short."""
    if turn.reason is not None:
        return f"held: {turn.reason.code}"
    return turn.waits_for or (f"replaces {turn.replaces}" if turn.replaces else "free")


WAITS = "its run to be quiet for 30 min; a later step counts instead"
LATER = "nothing: {} of the same run counts instead".format

CASES: dict[str, tuple[PerRun, str, list[Sighting], list[Checkpoint], list[str]]] = {
    "the last waits until the run is quiet": (
        "last", QUIET, [sighting(500), sighting(1000)], [], [LATER("alpha/checkpoint-1000"), WAITS]),
    "then it counts": (
        "last", "", [sighting(500), sighting(1000)], [], [LATER("alpha/checkpoint-1000"), "free"]),
    "numbers are no texts": (
        "last", "", [sighting(1000), sighting(500)], [], ["free", LATER("alpha/checkpoint-1000")]),
    "the final model counts at once, and alone": (
        "last", QUIET, [sighting(None), sighting(500)], [], ["free", LATER("alpha")]),
    "one counts already, and the training went on": (
        "last", "", [sighting(500), sighting(1000)], [row(1, "folded", 500)],
        [LATER("alpha/checkpoint-1000"), "held: run-counted"]),
    "one waits for its turn, and the training went on": (
        "last", "", [sighting(1000)], [row(1, "ready", 500)], ["held: run-counted"]),
    "the last one counts already, and is gone": (
        "last", "", [sighting(500)], [row(1, "folded", 1000)], [LATER("alpha/checkpoint-1000")]),
    "the last one itself is no hindrance": (
        "last", "", [sighting(1000)], [row(1, "folded", 1000)], ["free"]),
    "what was refused does not count": (
        "last", "", [sighting(1000)], [row(1, "refused", 500), row(2, "held", 700)], ["free"]),
    "the last one was refused": (
        "last", "", [sighting(500), sighting(1000)], [row(1, "refused", 1000)], ["free", "free"]),
    "the last one was refused, and the run may go on": (
        "last", QUIET, [sighting(500), sighting(1000)], [row(1, "refused", 1000)], [WAITS, "free"]),
    "the last one was refused, and is looked at again": (
        "last", "", [sighting(500), sighting(1000)], [row(1, "refused", 1000), row(2, "settling", 1000)],
        [LATER("alpha/checkpoint-1000"), "free"]),
    "the final model was refused": (
        "last", "", [sighting(None), sighting(500)], [row(1, "refused", None)], ["free", "free"]),
    "all were refused": ("last", "", [sighting(500)], [row(1, "refused", 500)], ["free"]),
    "replace: the last one was refused": (
        "replace", "", [sighting(500), sighting(1000)], [row(1, "refused", 1000)], ["free", "free"]),
    "other things in the same folder do not": (
        "last", "", [sighting(1000)], [row(1, "folded", None, f"{RUN}/notes")], ["free"]),
    "each": ("each", QUIET, [sighting(500), sighting(1000)], [], ["free", "free"]),
    "replace: only the last, at once": (
        "replace", QUIET, [sighting(500), sighting(1000)], [], [LATER("alpha/checkpoint-1000"), "free"]),
    "replace: the one that counts": (
        "replace", QUIET, [sighting(500), sighting(1000)], [row(7, "folded", 500)],
        [LATER("alpha/checkpoint-1000"), "replaces 7"]),
    "replace: the latest that counts": (
        "replace", QUIET, [sighting(1500)], [row(7, "folded", 500), row(8, "ready", 1000)], ["replaces 8"]),
    "replace: never by an earlier one": (
        "replace", QUIET, [sighting(500)], [row(8, "folded", 1000)], [LATER("alpha/checkpoint-1000")]),
    "replace: by the final model": (
        "replace", QUIET, [sighting(None), sighting(500)], [row(8, "folded", 500)], ["replaces 8", LATER("alpha")]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_who_counts_of_a_run(case: str) -> None:
    per_run, quiet, members, rows, expected = CASES[case]
    turns = plan(members, rows, per_run, quiet)
    assert [said(turns.get(member.place, FREE)) for member in members] == expected


def test_who_is_held_is_told_what_to_do() -> None:
    reason = plan([sighting(1000)], [row(1, "folded", 500)], "last", "")[f"{RUN}/checkpoint-1000"].reason
    assert reason is not None
    assert "alpha/checkpoint-500" in reason.found
    assert f"mergd approve {RUN}/checkpoint-1000" in reason.next_step


def test_what_was_refused_counts_again_when_it_has_changed() -> None:
    members = [sighting(500), replace(sighting(1000), stamps=(FileStamp("model.safetensors", 1, 1, 1, 1, 1),))]
    turns = plan(members, [row(1, "refused", 1000)], "last", "")
    assert [said(turns[member.place]) for member in members] == [LATER("alpha/checkpoint-1000"), "free"]
