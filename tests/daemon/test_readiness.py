"""Readiness as a table: the way of a place through its scans, each with what was seen, what the clocks said, and the end."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from mergd.daemon.readiness import Now, Patience, Readiness, Seen, seconds_to_wait, step
from mergd.plugins.sources.interface import Evidence
from mergd.state.records import FileStamp, Sighting

NOW = 1_000_000_000_000_000_000  # wall-clock nanoseconds
SECOND = 10**9
PATIENCE = Patience(quiet=5, unsure=30, network=120)
FILE = "model.safetensors"


def seen(
    *names: str, changed: float = 0, inode: int = 1, hashed: dict[str, str] | None = None, **evidence: Any
) -> Seen:
    """Return what a scan finds: files that changed so many seconds after the first scan, and what more is known."""
    at = NOW + int(changed * SECOND)
    stamps = tuple(FileStamp(name, 1, inode, 100, at, at) for name in names or (FILE,))
    return Seen(Sighting("directory", "/watch/a", "a", stamps), Evidence(**evidence), hashed or {})


def walk(scans: Sequence[tuple[float, Seen | None]], patience: Patience = PATIENCE) -> list[Readiness]:
    """Return the state after each scan; a scan is the seconds since the first, and what it found."""
    states: list[Readiness] = []
    for at, found in scans:
        now = Now(monotonic=1000 + at, wall_ns=NOW + int(at * SECOND))
        states.append(step(states[-1] if states else None, found, now, patience))
    return states


UNASKED: dict[str, Any] = {"unasked": (FILE,)}
HOLES: dict[str, Any] = {"holes": (FILE,)}
LISTED: dict[str, Any] = {"manifest": "SHA256SUMS", "digests": {FILE: "aa"}}
TWO: dict[str, Any] = {"manifest": "SHA256SUMS", "digests": {"a.safetensors": "aa", "b.safetensors": "bb"}}
BOTH = ("a.safetensors", "b.safetensors")

# Each scan: (seconds, what it found, the state after it, what is waited for, seconds to wait at most)
WAYS: dict[str, list[tuple[float, Seen | None, str, str, float | None]]] = {
    "it comes and stays as it is": [
        (0, seen(), "settling", "no change for 5 s", 5),
        (3, seen(), "settling", "no change for 5 s", 2),
        (5, seen(), "ready", "", None),
    ],
    "it grows": [
        (0, seen(), "settling", "no change for 5 s", 5),
        (4, seen(changed=4), "settling", "no change for 5 s", 5),
        (8, seen(changed=4), "settling", "no change for 5 s", 1),
        (9, seen(changed=4), "ready", "", None),
    ],
    "it was old when it was first seen": [(0, seen(changed=-60), "ready", "", None)],
    "its clock is ahead, so that only watching counts": [
        (0, seen(changed=60), "settling", "no change for 5 s", 5),
        (2, seen(changed=60), "settling", "no change for 5 s", 3),
        (5, seen(changed=60), "ready", "", None),
    ],
    "it is another file with the same times": [
        (0, seen(changed=99), "settling", "no change for 5 s", 5),
        (4, seen(changed=99, inode=2), "settling", "no change for 5 s", 5),
    ],
    "somebody writes it, however long that stalls": [
        (0, seen(writers=(FILE,)), "settling", f"nobody to write {FILE}", None),
        (9999, seen(writers=(FILE,)), "settling", f"nobody to write {FILE}", None),
        (9999, seen(), "ready", "", None),
    ],
    "a copy in progress left a name": [
        (0, seen(unfinished="x.part"), "settling", "x.part to be finished", None),
        (99, seen(unfinished="x.part"), "settling", "x.part to be finished", None),
        (100, seen(), "ready", "", None),
    ],
    "who writes cannot be asked": [
        (0, seen(**UNASKED), "settling", f"no change for 30 s: whether somebody writes {FILE} cannot be found out", 30),
        (29, seen(**UNASKED), "settling", f"no change for 30 s: whether somebody writes {FILE} cannot be found out", 1),
        (30, seen(**UNASKED), "ready", "", None),
    ],
    "it has a hole": [
        (5, seen(**HOLES), "settling", f"no change for 30 s: {FILE} has ranges that nobody has written", 25),
        (30, seen(**HOLES), "ready", "", None),
    ],
    "the hole is filled": [
        (5, seen(**HOLES), "settling", f"no change for 30 s: {FILE} has ranges that nobody has written", 25),
        (6, seen(changed=6), "settling", "no change for 5 s", 5),
        (11, seen(changed=6), "ready", "", None),
    ],
    "it lies on a network file system": [
        (30, seen(network=True), "settling", "no change for 120 s: it lies on a network file system", 90),
        (120, seen(network=True), "ready", "", None),
    ],
    "a marker ends the wait": [
        (0, seen(**UNASKED), "settling", f"no change for 30 s: whether somebody writes {FILE} cannot be found out", 30),
        (1, seen(**UNASKED, marker="READY"), "ready", "", None),
    ],
    "a marker, and still somebody writes": [
        (0, seen(marker="READY", writers=(FILE,)), "settling", f"nobody to write {FILE}", None),
    ],
    "a marker, and a hole": [
        (0, seen(marker="READY", **HOLES), "settling", f"no change for 30 s: {FILE} has ranges that nobody has written",
         30),
    ],
    "a manifest, and its digest": [
        (0, seen(**LISTED, **UNASKED), "settling", f"{FILE} to be hashed, for SHA256SUMS", None),
        (1, seen(**LISTED, **UNASKED, hashed={FILE: "aa"}), "ready", "", None),
    ],
    "a manifest, and another digest": [
        (0, seen(**LISTED, hashed={FILE: "ff"}), "settling", f"{FILE} to have the digest that SHA256SUMS lists", None),
        (9999, seen(**LISTED, hashed={FILE: "ff"}), "settling", f"{FILE} to have the digest that SHA256SUMS lists", None),
        (9999, seen(**LISTED, changed=9999, hashed={FILE: "aa"}), "ready", "", None),
    ],
    "a manifest of what cannot be hashed": [
        (0, seen(**LISTED, hashed={FILE: ""}), "settling", f"{FILE} to be a file that can be hashed, for SHA256SUMS",
         None),
    ],
    "a manifest of two files, of which one is there": [
        (0, seen("b.safetensors", **TWO, hashed={"b.safetensors": "bb"}), "settling",
         "a.safetensors, which SHA256SUMS lists", None),
        (1, seen(*BOTH, **TWO, hashed={"b.safetensors": "bb"}), "settling", "a.safetensors to be hashed, for SHA256SUMS",
         None),
        (2, seen(*BOTH, **TWO, hashed={"a.safetensors": "aa", "b.safetensors": "bb"}), "ready", "", None),
    ],
    "a manifest that does not list every weight file ends no wait": [
        (0, seen(FILE, "z.safetensors", **LISTED, hashed={FILE: "aa"}), "settling", "no change for 5 s", 5),
        (5, seen(FILE, "z.safetensors", **LISTED, hashed={FILE: "aa"}), "ready", "", None),
    ],
    "it may not be read, and then it may": [
        (0, seen(unreadable="/watch/a/x"), "blocked", "/watch/a/x", None),
        (60, seen(unreadable="/watch/a/x"), "blocked", "/watch/a/x", None),
        (120, seen(changed=119), "settling", "no change for 5 s", 4),
        (124, seen(changed=119), "ready", "", None),
    ],
    "it goes, and comes back": [
        (0, seen(changed=99), "settling", "no change for 5 s", 5),
        (4, None, "vanished", "", None),
        (6, seen(changed=99), "settling", "no change for 5 s", 5),
    ],
    "an empty folder: what it lacks is said by the format": [
        (0, Seen(Sighting("directory", "/watch/a", "a", ())), "ready", "", None),
    ],
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_each_step_of_a_way(way: str) -> None:
    scans = WAYS[way]
    states = walk([(at, found) for at, found, *_ in scans])
    for (at, _, state, waits_for, seconds), reached in zip(scans, states, strict=True):
        assert (at, reached.state, reached.waits_for) == (at, state, waits_for)
        assert reached.seconds == (None if seconds is None else pytest.approx(seconds, abs=1e-6))


def test_a_longer_quiet_makes_no_doubt_shorter() -> None:
    (reached,) = walk([(0, seen(**UNASKED))], replace(PATIENCE, quiet=60))
    assert reached.seconds == pytest.approx(60)


def test_nothing_is_waited_for_where_every_time_is_zero() -> None:
    for found in (seen(), seen(**UNASKED), seen(**HOLES), seen(network=True)):
        assert walk([(0, found)], Patience(0, 0, 0))[0].state == "ready"


@pytest.mark.parametrize(("found", "state"), [
    (seen(changed=-9999), "settling"), (seen(marker="READY"), "ready"),
    (seen(**LISTED, hashed={FILE: "aa"}), "ready"),
])  # fmt: skip
def test_where_markers_are_asked_for_no_quiet_is_enough(found: Seen, state: str) -> None:
    (reached,) = walk([(0, found)], replace(PATIENCE, marked_only=True))
    assert reached.state == state
    assert reached.waits_for == ("a marker or a manifest" if state == "settling" else "")


@pytest.mark.parametrize(("ago", "seen_for", "expected"), [
    (0, 0, 5), (0, 3, 2), (0, 5, 0), (60, 0, 0), (3, 0, 2), (3, 4, 1), (-60, 2, 3), (-60, 5, 0),
])  # fmt: skip
def test_the_longer_of_two_clocks_counts(ago: float, seen_for: float, expected: float) -> None:
    assert seconds_to_wait(NOW - int(ago * SECOND), seen_for, NOW, 5.0) == pytest.approx(expected, abs=1e-6)
