"""Somebody else's plugins, one of each kind, written against nothing but mergd's interfaces."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mergd.plugins.formats.interface import Contents
from mergd.plugins.rules.interface import Slots, Statistic, Sum, Update
from mergd.plugins.sources.directory import Directory
from mergd.plugins.sources.interface import Scan
from mergd.state.errors import Busy
from mergd.state.headers import MAX_TENSORS, layout_of
from mergd.state.records import (
    ADMITTED,
    Counts,
    Drafted,
    News,
    Reason,
    Sighting,
    SlotSpec,
    Totals,
    Verdict,
    Weight,
)


@dataclass(frozen=True)
class SignedSum(Sum):
    """The sum of the task vectors, and that of their signs."""

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        return {"sum": SlotSpec(w.shape), "signs": SlotSpec(w.shape)}

    def term(self, u: Update, w: Weight) -> Slots:
        return {"sum": u.delta, "signs": u.delta.sign()}


@dataclass(frozen=True)
class TheirRule:
    """Reads `factor` times the mean task vector where all checkpoints agree on the sign, and zero elsewhere."""

    factor: float = 1.0

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        return (SignedSum(),)

    def rowwise(self, w: Weight) -> bool:
        return True

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        slots = kept[SignedSum()]
        agreed = slots["signs"].abs() == counts.shares
        return torch.where(agreed, slots["sum"] / counts.shares, 0.0)

    def scale(self, totals: Totals) -> float:
        return self.factor


class TheirFormat:
    """A folder `NAME.mycheckpoint` of weight files, complete when it holds a file `done`."""

    def recognises(self, place: Path) -> bool:
        return place.suffix == ".mycheckpoint" and place.is_dir()

    def contents(self, place: Path, most: int = MAX_TENSORS) -> Contents:
        if not (place / "done").exists():
            raise Busy("waits for the file done")
        return Contents.whole(layout_of(sorted(place.glob("*.safetensors")), most))


class TheirGate:
    """Refuses or holds a checkpoint by its name, once it has seen that the draft is there to be looked at."""

    def judge(self, drafted: Drafted) -> Verdict:
        assert drafted.model is not None
        assert (Path(drafted.model) / "model.safetensors").is_file()
        if drafted.checkpoint.startswith("doubtful"):
            return Verdict("held", (Reason("doubtful", drafted.checkpoint, "a name that says more", "decide on it"),))
        if not drafted.checkpoint.startswith("unwanted"):
            return ADMITTED
        reason = Reason("unwanted", drafted.checkpoint, "a name that does not begin so", "rename it")
        return Verdict("refused", (reason,))


class TheirHook:
    """Appends the news to the file $THEIR_NEWS; fails as long as that file is not there."""

    def tell(self, news: News) -> None:
        with open(os.environ["THEIR_NEWS"], "r+") as file:
            file.seek(0, os.SEEK_END)
            file.write(json.dumps(asdict(news)) + "\n")


class TheirSource:
    """Checkpoints of several teams: each folder in the watched one is a team's, and holds checkpoints."""

    name = "teams"

    def __init__(self, root: Path) -> None:
        self._teams = root

    def scan(self, mark: str | None) -> Scan:
        seen = [s for team in sorted(self._teams.iterdir()) for s in Directory(team).scan().sightings]
        return Scan(tuple(replace(sighting, source=self.name) for sighting in seen))

    def sight(self, place: Path) -> Sighting | None:
        sighting = Directory(place.parent).sight(place)
        return sighting and replace(sighting, source=self.name)

    def watch(self, wake: Callable[[], None]) -> None:
        """Nothing tells of a new checkpoint: the repeated scan does."""

    def close(self) -> None:
        """Nothing is open."""
