"""Replacing as a table: a line of versions, what a newcomer replaces, and what its fold starts from."""

from dataclasses import replace

import pytest

from mergd.daemon.replacing import plan
from mergd.state.records import Checkpoint, Totals, Version


def version(number: int, kept: bool = True) -> Version:
    """Return version N, which folded checkpoint N onto version N - 1."""
    parent = number - 1 or None
    return Version(number, parent, "fold", number, "average", Totals(), 1.0, "", "", slots_kept=kept, model_kept=kept)


def rows(replaces: dict[int, int], urgent: bool) -> dict[int, Checkpoint]:
    """Return checkpoints 1 to 9, of which 1 to 3 are folded; 9 is the newcomer."""
    return {
        n: Checkpoint(
            n, "directory", f"/watch/{n}", f"{n}", "", "folded" if n < 4 else "ready", "",
            digest=f"digest {n}" if n < 4 else None, replaces=replaces.get(n), urgent=1 if urgent and n == 9 else None,
        )
        for n in range(1, 10)
    }  # fmt: skip


# what replaces what; dropped versions; asked for? -> parent, replaced, code of the reason
CASES: dict[str, tuple[dict[int, int], set[int], bool, tuple[int | None, int | None, str]]] = {
    "the head": ({9: 3}, set(), False, (2, 3, "")),
    "the head, and nobody knows of what was before": ({9: 3}, {1}, False, (2, 3, "")),
    "the head, onto what was dropped": ({9: 3}, {1, 2}, False, (3, None, "replace-later")),
    "the head, onto what was dropped, as a person asks": ({9: 3}, {1, 2}, True, (3, None, "")),
    "an earlier one": ({9: 2}, set(), False, (3, None, "replace-later")),
    "an earlier one, as a person asks": ({9: 2}, set(), True, (3, None, "")),
    "an earlier one that was dropped": ({9: 2}, {1, 2}, False, (3, None, "replace-later")),
    "what never was in the model": ({9: 8}, set(), False, (3, None, "")),
    "what never was, which would have replaced the head": ({9: 8, 8: 3}, set(), False, (2, 3, "")),
    "nothing": ({}, set(), False, (3, None, "")),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_fold_starts_from(case: str) -> None:
    replaces, dropped, asked, expected = CASES[case]
    line = [version(number, number not in dropped) for number in (3, 2, 1)]
    known = rows(replaces, asked)
    start = plan(known[9], line, known.__getitem__)
    found = start.parent and start.parent.number, start.replaced and start.replaced.number
    assert (*found, start.held.code if start.held else "") == expected


def test_the_first_version_is_replaced_by_one_from_nothing() -> None:
    known = rows({9: 1}, urgent=False)
    start = plan(known[9], [version(1)], known.__getitem__)
    assert (start.parent, start.replaced, start.held) == (None, version(1), None)


def test_the_same_content_under_another_row_is_what_is_replaced() -> None:
    known = rows({9: 8}, urgent=False)
    known[8] = replace(known[8], state="folded", digest="digest 3", duplicate_of=3)
    assert plan(known[9], [version(3), version(2)], known.__getitem__).replaced == version(3)


def test_what_stands_in_the_way_is_named_with_the_commands_that_help() -> None:
    known = rows({9: 1}, urgent=False)
    held = plan(known[9], [version(3), version(2), version(1)], known.__getitem__).held
    assert held is not None
    assert held.found.endswith("2, 3")
    commands = "mergd rollback v1; mergd fold /watch/9; mergd fold --again /watch/2 /watch/3"
    assert commands in held.next_step
