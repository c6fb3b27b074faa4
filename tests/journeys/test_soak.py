"""A daemon that folds for long: `make soak` does it a thousand times and more."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from journeys.soak import EVERY, KEEP, KIB, ROUND, Report, Sample, soak

pytestmark = pytest.mark.long


def test_nothing_grows_from_fold_to_fold() -> None:
    report = soak(warm_up=ROUND, count=4 * ROUND, seed=2)
    assert report.between == {what: 5 // rounds for what, rounds in EVERY.items()}
    assert report.broken(rss_slope=128) == []  # so few folds show a model that stays in memory, and no less


def steady() -> Report:
    """Return what a run sees in which nothing grows."""
    version = 10**6
    sample = Sample(2 * 10**8, 16, 8, KEEP * version, 0, 0, 0.1)
    return Report(version, [replace(sample, rss=sample.rss + 4 * KIB * (k % 2)) for k in range(20)], ended_well=True)


GROWING: dict[str, Callable[[Sample, int], Sample]] = {
    "memory": lambda sample, k: replace(sample, rss=sample.rss + 2 * KIB * ROUND * k),
    "files": lambda sample, k: replace(sample, files=sample.files + k // 4),
    "threads": lambda sample, k: replace(sample, threads=sample.threads + k // 9),
    "disk": lambda sample, k: replace(sample, weights=sample.weights + 10**7 * k),
    "stays": lambda sample, k: replace(sample, weights=sample.weights + 10**6 * k),
}


@pytest.mark.parametrize("what", GROWING)
def test_the_report_says_what_grows(what: str) -> None:
    report = steady()
    assert report.broken(1.0) == []
    report.samples = [GROWING[what](sample, k) for k, sample in enumerate(report.samples)]
    assert any(what in promise for promise in report.broken(1.0))
    assert str(report)
