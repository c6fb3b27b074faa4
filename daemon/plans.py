"""Plans: what doing a task would mean, in numbers and in words."""

from dataclasses import dataclass
from typing import Any

from ..state.wording import size
from .remaking import Remake


@dataclass(frozen=True)
class Fetch:
    """What a route fetches from the Hub again."""

    nbytes: int  # as far as it is known
    at_once: int  # bytes of the disk, for the step that needs most
    unknown: int  # checkpoints of which nobody noted how much they are

    @staticmethod
    def of(job: Remake, most: int | None) -> "Fetch":
        """Return what a job has to fetch, as far as its history knows; what is larger than `most` takes none of the disk."""
        each = [[job.rows[r].nbytes for r in step.rows if not job.sightings[r].lies_here] for step in job.route.steps]
        here = [[nbytes for nbytes in filter(None, step) if most is None or nbytes <= most] for step in each]
        nbytes = sum(sum(filter(None, step)) for step in each)
        return Fetch(nbytes, max(map(sum, here), default=0), sum(step.count(None) for step in each))

    def __str__(self) -> str:
        parts = [size(self.nbytes)] if self.nbytes else []
        parts += [f"{self.unknown} checkpoints of an unknown size"] if self.unknown else []
        return f", of it {' and '.join(parts)} from the Hub" if parts else ""


@dataclass(frozen=True)
class Plan:
    """What doing a task would mean."""

    job: Remake
    how: str  # "subtraction", "replay", "read-out" or "re-merge"
    nbytes: int  # that are read of sources
    fetch: Fetch  # what of them comes from the Hub first
    seconds: float  # by the folds so far
    need: int  # bytes of the disk, while it is done
    left_out: tuple[str, ...] = ()  # checkpoints of the model whose sources are gone
    goes_on_by: str = ""  # the rule by which the next fold is read, where it is not the one of this version

    def describe(self) -> dict[str, Any]:
        """Return it as scripts see it."""
        start = self.job.start
        return {
            "how": self.how,
            "from": start.number if start else None,
            "folds": len(self.job.route.steps),
            "bytes": self.nbytes,
            "fetch": self.fetch.nbytes,
            "seconds": round(self.seconds, 1),
            "disk": self.need,
            "left_out": list(self.left_out),
            "goes_on_by": self.goes_on_by,
            "words": str(self),
        }

    def __str__(self) -> str:
        cost = f"{size(self.nbytes)} to read{self.fetch}, about {self.seconds / 60:.1f} minutes"
        gone = f"; without {', '.join(self.left_out)}, whose sources are gone" if self.left_out else ""
        return f"{self._how()}: {cost}{gone}"

    def _how(self) -> str:
        steps, start = len(self.job.route.steps), self.job.start or "the base model"
        if self.how == "re-merge":
            return f"all {len(self.job.rows)} at once, onto the base model"
        if self.how in ("subtraction", "read-out"):
            return f"by {self.how}" + (f", after {steps - 1} folds onto {start}" if steps > 1 else "")
        return f"{steps} {'fold' if steps == 1 else 'folds'} onto {start}"
