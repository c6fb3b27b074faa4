"""Means over trainings with their 95 % Student t intervals, and the same of differences that are paired by draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import atan, cos, inf, pi, sin, sqrt
from statistics import fmean, stdev

LEVEL = 0.95


def within(t: float, freedom: int) -> float:
    """Return the probability that Student's t, with so many degrees of freedom, lies between -t and t.

    For a whole number of degrees it is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4), exact but for rounding.
    """
    angle = atan(t / sqrt(freedom))
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    total = 0.0
    for i in range(1 + odd, freedom, 2):
        total += term
        term *= i / (i + 1) * cos(angle) ** 2
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


def quantile(freedom: int, level: float = LEVEL) -> float:
    """Return the t for which Student's t lies between -t and t with this probability."""
    below, above = 0.0, 1.0
    while within(above, freedom) < level:
        above *= 2
    while (middle := (below + above) / 2) not in (below, above):  # until no number lies between them
        below, above = (middle, above) if within(middle, freedom) < level else (below, middle)
    return above


def by_training(values: Mapping[str, float]) -> list[float]:
    """Return the mean over the orders of each training; a draw is TRAINING-ORDER.

    Orders of the same checkpoints are no new draws: a rule that knows no order would give the same figure again and again.
    """
    found: dict[str, list[float]] = {}
    for draw, value in values.items():
        found.setdefault(draw.partition("-")[0], []).append(value)
    return [fmean(one) for one in found.values()]


@dataclass(frozen=True)
class Interval:
    """The mean of n draws, and how far its interval reaches to either side: without end of a single draw."""

    mean: float
    half: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Return the interval of the mean of these draws; without width where all of them are equal."""
        n = len(values)
        return cls(fmean(values), quantile(n - 1) * stdev(values) / sqrt(n) if n > 1 else inf, n)

    @property
    def lower(self) -> float:
        """The lower end: by the draws seen, the mean is hardly less."""
        return self.mean - self.half

    @property
    def wide(self) -> bool:
        """Whether there is a width to tell."""
        return 0 < self.half < inf

    def __str__(self) -> str:
        """Return mean and half-width; where there is no width, of how many draws instead."""
        return f"{self.mean:.1f} ± {self.half:.1f}" if self.wide else f"{self.mean:.1f} (n = {self.n})"

    def as_margin(self) -> str:
        """Return the mean with its sign, and the lower end."""
        return f"{self.mean:+z.1f} (at least {self.lower:+z.1f})" if self.wide else f"{self.mean:+z.1f} (n = {self.n})"


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Interval | None:
    """Return by how much one method is above another, over the draws that both have; None where there are none."""
    both = {draw: ours[draw] - theirs[draw] for draw in ours if draw in theirs}
    return Interval.of(by_training(both)) if both else None
