"""How far a metric may drop: from the head's, and from the best on the way there, so that small drops do not add up."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...state.records import ADMITTED, Metric, Metrics, Reason, Verdict
from ...state.wording import decide

ROUNDING = 1e-9  # of the larger value: 0.95 - 0.94 is more than 0.01
SHOWN = 3  # metrics in a reason


@dataclass(frozen=True)
class Tolerance:
    """What a metric may lose; for one that is better when lower, what it may gain."""

    drop: float = 0.01  # below the head's
    total_drop: float = 0.03  # below the best on the way

    def judge(self, draft: Metrics, head: Metrics, best: Metrics, gate: str = "", place: str = "") -> Verdict:
        """Admit a draft, or hold its checkpoint with a reason for each kind of loss.

        head: of the base model before there is a version. gate: its name; place: the checkpoint's.
        """
        reasons = tuple(self._doubts(draft, head, best, gate, place))
        return Verdict("held", reasons) if reasons else ADMITTED

    def _doubts(self, draft: Metrics, head: Metrics, best: Metrics, gate: str, place: str) -> Iterator[Reason]:
        next_step, setting = decide(place), f"gate.{gate}"
        lacking = [name for name, before in head.items() if not comparable(draft.get(name), before)]
        if lacking:
            found = f"no {_some(lacking)}, by gate {gate}"
            yield Reason(
                "metric-missing",
                found,
                "every metric that there is of the head, better in the same direction",
                next_step,
            )
        if lost := _losses(draft, head, self.drop):
            found = f"{_some(lost)}, which it is now, by gate {gate}"
            yield Reason("metric-drop", found, f"at most {self.drop:g} ({setting}.drop)", next_step)
        if lost := _losses(draft, best, self.total_drop):
            found = f"{_some(lost)}, the best on the way, by gate {gate}"
            expected = f"at most {self.total_drop:g} ({setting}.total_drop)"
            yield Reason("metric-total-drop", found, expected, next_step)


def best_of(way: Iterable[Metrics]) -> dict[str, Metric]:
    """Return the best of each metric; of one that changed its direction, as the first says it."""
    best: dict[str, Metric] = {}
    for metrics in way:
        for name, metric in metrics.items():
            if name not in best or (comparable(metric, best[name]) and loss(metric, best[name]) < 0):
                best[name] = metric
    return best


def loss(now: Metric, before: Metric) -> float:
    """Return by how much a metric is worse than it was."""
    return before.value - now.value if before.higher_is_better else now.value - before.value


def comparable(now: Metric | None, before: Metric) -> bool:
    """Whether there are both, better in the same direction."""
    return now is not None and now.higher_is_better is before.higher_is_better


def _losses(draft: Metrics, before: Metrics, most: float) -> list[str]:
    """Return in words which metrics lost more than this, the worst first."""
    pairs = [(name, draft[name], then) for name, then in before.items() if comparable(draft.get(name), then)]
    lost = [(loss(now, then), name, now, then) for name, now, then in pairs]
    worst = sorted((each for each in lost if each[0] > most + _rounding(each[2], each[3])), key=lambda each: -each[0])
    return [
        f"{name} {now.value:.6g}, {by:.4g} {'below' if now.higher_is_better else 'above'} {then.value:.6g}"
        for by, name, now, then in worst
    ]


def _rounding(one: Metric, other: Metric) -> float:
    return ROUNDING * max(abs(one.value), abs(other.value))


def _some(words: list[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return "; ".join(words[:SHOWN]) + more
