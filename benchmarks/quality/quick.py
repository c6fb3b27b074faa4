"""The quick run's methods, and what must be true of its figures whatever they are: sanity, no claim."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from .measuring import Job
from .records import Result, read

ENDS = ("zero-shot", "individual", "plain-average")
QUICK = {  # the methods of each set
    "digits-5": (*ENDS, "plain-sum-0.3", "chained-ties", "fusion-bench-opcm", "opcm-block", "opcm-block_diagonal",
                 "average", "ties", "tsvm", "gram", "fisher", "consensus_ta"),
    "digits-5-lora": (*ENDS, "opcm-block", "average"),
    "digits-5+noise": ("opcm-block",),
    "digits-5+noise-gate": ("opcm-block",),
}  # fmt: skip
BETTER = ("opcm-block", "gram")  # than the base, and than an average
INDIVIDUAL = 85.0  # percent
CLOSE = 0.3  # points between mergd's and fusion-bench's OPCM


def complaints(jobs: Sequence[Job]) -> list[str]:
    """Return what is wrong with the figures of these jobs, as sentences."""
    found = [read(job.path) for job in jobs if job.path.exists()]
    draws = groupby((r for r in found if "+" not in r.set), lambda result: (result.set, result.training, result.order))
    return [f"{' '.join(map(str, draw))}: {what}" for draw, results in draws for what in _wrong(list(results))]


def _wrong(results: list[Result]) -> Iterator[str]:
    by = {result.method: result for result in results}
    yield from (f"{name} has an accuracy that is none" for name, result in by.items() if not _is_sane(result))
    accuracy = {name: result.accuracy for name, result in by.items()}
    if accuracy.get("individual", INDIVIDUAL) < INDIVIDUAL:
        yield f"the individual models are right on {accuracy['individual']:.1f} %"
    floor = max(accuracy.get("zero-shot", 0), accuracy.get("plain-average", 0) - 1)
    for name in BETTER:
        if accuracy.get(name, 100) <= floor:
            yield f"{name} gives {accuracy[name]:.1f} %, the base or an average {floor:.1f} %"
    for ours, theirs in (("average", "plain-average"), ("opcm-block_diagonal", "fusion-bench-opcm")):
        if {ours, theirs} <= {*by} and abs(accuracy[ours] - accuracy[theirs]) > CLOSE:
            yield f"{ours} gives {accuracy[ours]:.2f} %, {theirs} {accuracy[theirs]:.2f} %"


def _is_sane(result: Result) -> bool:
    figures = [*result.final.values(), *result.unseen.values(), *(a for row in result.curve for a in row)]
    return all(0 <= figure <= 100 for figure in figures)
