"""Checkpoints arrive in every style, with stalls; none is folded before it is complete, and each soon after.

`make arrivals` does the same at length, with the settings as they are shipped.
"""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.arrivals import Arrivals, Judged, Pace, late
from support.styles import KNOWN, MARKED, UNKNOWABLE

pytestmark = pytest.mark.long

# A machine that has much else to do may stall a copy by itself: the bounds are far apart.
BRISK = Pace(quiet=0.5, quiet_unsure=2.5, stall_up_to=0.4, stall_once=3.5, grace=60.0)


@dataclass
class Trip:
    """What arrives at one merge, and how it ended."""

    styles: tuple[str, ...]
    other_user: bool = True
    marked_only: bool = False
    judged: list[Judged] = field(default_factory=list)
    quiet: float = 0.0  # seconds

    def make(self, root: Path) -> None:
        arrivals = Arrivals(root, BRISK, seed=1, other_user=self.other_user, marked_only=self.marked_only)
        coming = [arrivals.prepare(style, number) for number, style in enumerate(self.styles)]
        self.judged, self.quiet = arrivals.run(coming, at_once=len(coming)), arrivals.quiet


TRIPS = {
    "another user": Trip(KNOWN),
    "the same user": Trip((*KNOWN, *UNKNOWABLE), other_user=False),
    "markers asked for": Trip((*MARKED, "hf download"), marked_only=True),
    "no markers asked for": Trip(UNKNOWABLE),
}


@pytest.fixture(scope="module", autouse=True)
def _trips() -> Iterator[None]:
    """Make all trips at once, where every user may enter: pytest's own folders are for one alone."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(TRIPS)) as pool:
        os.chmod(folder, 0o755)
        list(pool.map(lambda name: TRIPS[name].make(Path(folder) / name.replace(" ", "-")), TRIPS))
    yield


@pytest.mark.parametrize("name", ["another user", "the same user", "markers asked for"])
def test_nothing_is_folded_before_it_is_complete(name: str) -> None:
    assert not [j for j in TRIPS[name].judged if j.early]


@pytest.mark.parametrize("name", ["another user", "the same user", "markers asked for"])
def test_everything_is_folded_soon_after_it_was_complete(name: str) -> None:
    assert not late(TRIPS[name].judged, TRIPS[name].quiet, BRISK.grace)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_the_limit_is_as_the_page_of_arrivals_has_it() -> None:
    """What no rule can know is folded early, and what judges the others sees it."""
    assert [j.early for j in TRIPS["no markers asked for"].judged] == [1]
