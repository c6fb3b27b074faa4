"""A gate that is a program of the user's: it is asked to measure a model, and what comes of it is a value, never an exception."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ...state.records import Metric, Reason, Verdict
from ...state.wording import decide
from ..programs import Program as Runner
from .answers import metrics_in, request
from .tolerance import Tolerance

REFUSES = 65  # the exit code with which a program refuses a checkpoint


@dataclass(frozen=True)
class Model:
    """What a program is to measure."""

    digest: str
    path: str
    words: str  # that name it to people: "v3", "the base model"
    place: str  # of the checkpoint that waits for it
    version: int | None = None  # None for the base model
    checkpoint: str | None = None
    parent: int | None = None


@dataclass(frozen=True)
class Program:
    """One gate of the configuration."""

    name: str
    runner: Runner
    deadline: float = 1800.0  # seconds
    tolerance: Tolerance = field(default_factory=Tolerance)
    enforces: bool = True  # else it only measures

    def measure(self, model: Model, stopped: Callable[[], bool]) -> dict[str, Metric] | Verdict:
        """Return what the program measured; else the verdict on whoever waits: refused by it, or held since it failed."""
        asked = request(model.path, model.version, model.checkpoint, model.parent, self.deadline)
        ran = self.runner.run(asked, self.deadline, stopped)
        if ran.exit == REFUSES:
            found = f"gate {self.name} refuses {model.words}: {ran.last_line or 'it gave no reason'}"
            reason = Reason("gate-refused", found, f"what gate {self.name} takes", "ask whoever runs that gate")
            return Verdict("refused", (reason,))
        try:
            if ran.exit == 0:
                return metrics_in(ran.output)
            ended = "" if ran.exit is None else f"signal {-ran.exit}" if ran.exit < 0 else f"exit code {ran.exit}"
            why = ": ".join(filter(None, (ended, ran.last_line)))
        except ValueError as error:
            why = str(error)
        return self.failed(model, why)

    def failed(self, model: Model, why: str) -> Verdict:
        """Return the verdict on a checkpoint that could not be judged."""
        found = f"gate {self.name} could not measure {model.words}: {why}"
        reason = Reason("gate-failed", found, "exit code 0 and an answer of protocol 1", decide(model.place))
        return Verdict("held", (reason,))
