"""The built-in gate: what only the content shows. It judges the norms and cosines that folding gathered, before publishing.

Norms do not find a backdoor: a poisoned checkpoint looks like a good one here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import exp, inf, isfinite, log, sqrt
from statistics import median

from ...state.records import ADMITTED, Contribution, Drafted, Reason, Verdict
from ...state.wording import decide

ENOUGH = 5  # folds before newcomers are compared with them
NEWEST = 200  # folds that the usual norm is taken from
FACTOR = 3.0  # from the usual norm; nearer is never unusual
ALIKE = 0.02  # relative difference of norm between near-copies, at most
NEAR_ZERO = 1e-3  # of the base model's root mean square: such a weight was made to be learnt anew
MAD_TO_SIGMA = 1.4826  # for a normal distribution
SHOWN = 3  # names in a reason


@dataclass(frozen=True)
class Sane:
    """Refuses numbers that are not finite, and holds what is unusual for a person. A limit of 0 switches one off."""

    norm: float = 0.5  # of the task vector over the base model's, all weights together
    weight_norm: float = 1.0  # the same for each matrix
    sigmas: float = 6.0  # robust standard deviations of the log norm from the usual one
    cosine: float = -0.5  # with the running merge, at least
    near_copy: float = 0.99  # cosine with an earlier checkpoint, at most
    share: float = 0.0  # of the summed norm that one contributor may have
    adapter_rank: int = 1024
    adapter_scale: float = 64.0  # alpha / r, for LoRA
    per_day: int = 0  # folds within 24 hours

    def judge(self, drafted: Drafted) -> Verdict:
        """Refuse where a weight's norm shows a NaN or an infinity; else hold for each limit that is passed."""
        bad = [name for name, report in drafted.weights.items() if not isfinite(report.task_norm)]
        if bad:
            next_step = "train again from before the divergence; no other checkpoint was touched"
            reason = Reason("not-finite", f"NaN or infinity in {_some(bad)}", "finite numbers everywhere", next_step)
            return Verdict("refused", (reason,))
        reasons = tuple(self._doubts(drafted))
        return Verdict("held", reasons) if reasons else ADMITTED

    def _doubts(self, drafted: Drafted) -> Iterator[Reason]:
        """Yield the reasons for which a person should look at it."""
        checks = (_far, _far_weights, _wild_adapter, _unusual, _against, _near_copy, _too_much, _too_many)
        yield from filter(None, (check(self, drafted) for check in checks))


def _far(limits: Sane, drafted: Drafted) -> Reason | None:
    """A stranger's base model shows here: weights of another training from the same shapes are 1.4 norms away."""
    ratio = drafted.norm / drafted.base_norm if drafted.base_norm else 0.0
    if not 0 < limits.norm < ratio:
        return None
    found = f"a task vector of {ratio:.3g} times the base model's norm"
    expected = f"at most {limits.norm:g} (limits.norm): is it a fine-tune of this base model?"
    return Reason("far-from-base", found, expected, decide(drafted.place))


def _far_weights(limits: Sane, drafted: Drafted) -> Reason | None:
    far = [f"{name} {ratio:.3g}" for name, ratio in _ratios(drafted) if 0 < limits.weight_norm < ratio]
    if not far:
        return None
    expected = f"at most {limits.weight_norm:g} times the base model's norm in each matrix (limits.weight_norm)"
    return Reason(
        "far-weight", f"{len(far)} matrices that are farther away: {_some(far)}", expected, decide(drafted.place)
    )


def _ratios(drafted: Drafted) -> Iterator[tuple[str, float]]:
    """Yield task norm over base norm of each matrix, but for those that the base model has near zero."""
    size = sum(weight.size for weight in drafted.shapes.values())
    least = NEAR_ZERO * drafted.base_norm / sqrt(size) if size else 0.0
    for name, weight in drafted.shapes.items():
        report = drafted.weights[name]
        if weight.kind == "matrix" and report.base_norm > least * sqrt(weight.size):
            yield name, report.task_norm / report.base_norm


def _wild_adapter(limits: Sane, drafted: Drafted) -> Reason | None:
    rank, scale = drafted.strength
    if not (0 < limits.adapter_rank < rank or 0 < limits.adapter_scale < abs(scale)):
        return None
    expected = (
        f"at most rank {limits.adapter_rank} and {limits.adapter_scale:g} (limits.adapter_rank, limits.adapter_scale)"
    )
    return Reason("wild-adapter", f"rank {rank} scaled by {scale:g}", expected, decide(drafted.place))


def _unusual(limits: Sane, drafted: Drafted) -> Reason | None:
    """Compare the log of the norm with the median of the newest ones, in units of their median deviation from it."""
    logs = [log(earlier.norm) for earlier in islice(drafted.past, NEWEST) if earlier.norm > 0]
    if len(logs) < ENOUGH or limits.sigmas <= 0:
        return None
    usual = median(logs)
    away = abs(log(drafted.norm) - usual) if drafted.norm > 0 else inf
    sigma = MAD_TO_SIGMA * median(abs(value - usual) for value in logs)
    if away <= log(FACTOR) or away <= limits.sigmas * sigma:
        return None
    found = f"a task vector of norm {drafted.norm:.3g}"
    expected = f"about {exp(usual):.3g}, as of the {len(logs)} before it, within {limits.sigmas:g} robust sigmas"
    return Reason("unusual-norm", found, f"{expected} (limits.sigmas) or a factor of {FACTOR:g}", decide(drafted.place))


def _against(limits: Sane, drafted: Drafted) -> Reason | None:
    """It takes back what the others agree on: what a checkpoint made to undo them would do."""
    norms = drafted.norm * drafted.parent_norm
    cosine = sum(report.dot for report in drafted.weights.values()) / norms if norms else 0.0
    if not cosine < limits.cosine < 0:
        return None
    return Reason(
        "against-merge",
        f"a cosine of {cosine:.3f} with the running merge",
        f"{limits.cosine:g} or more (limits.cosine)",
        decide(drafted.place),
    )


def _near_copy(limits: Sane, drafted: Drafted) -> Reason | None:
    """Two names for one training would be two votes. One whose version was rolled back has none."""
    pairs = zip(drafted.cosines, drafted.past, strict=True)
    alike = [(cosine, earlier) for cosine, earlier in pairs if limits.near_copy < cosine and _alike(earlier, drafted)]
    if not alike or limits.near_copy <= 0:
        return None
    cosine, earlier = max(alike, key=lambda pair: pair[0])
    like = f"the task vector of {earlier.checkpoint} (v{earlier.version}) again: cosine {cosine:.4f}, by their sketches"
    return Reason(
        "near-copy",
        like,
        f"at most {limits.near_copy:g} (limits.near_copy), so that no training counts twice",
        decide(drafted.place),
    )


def _alike(earlier: Contribution, drafted: Drafted) -> bool:
    return abs(earlier.norm - drafted.norm) <= ALIKE * max(earlier.norm, drafted.norm)


def _too_much(limits: Sane, drafted: Drafted) -> Reason | None:
    """With one contributor alone there is nothing to share."""
    who, norms = drafted.contributor, {drafted.contributor: drafted.norm}
    for earlier in drafted.past:
        norms[earlier.contributor] = norms.get(earlier.contributor, 0.0) + earlier.norm
    whole = sum(norms.values())
    if limits.share <= 0 or len(norms) < 2 or len(drafted.past) < ENOUGH or norms[who] <= limits.share * whole:
        return None
    found = f"{norms[who] / whole:.0%} of the summed norm by {who or 'one source'}"
    return Reason(
        "too-much-of-one",
        found,
        f"at most {limits.share:.0%} by one owner or source (limits.share)",
        decide(drafted.place),
    )


def _too_many(limits: Sane, drafted: Drafted) -> Reason | None:
    if not 0 < limits.per_day <= drafted.last_day:
        return None
    return Reason(
        "too-many",
        f"{drafted.last_day} folds within 24 hours",
        f"at most {limits.per_day} (limits.per_day)",
        decide(drafted.place),
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
