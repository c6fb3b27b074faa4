"""What a gate's program is asked, and what it may answer: protocol 1. What it says is not trusted."""

import json
from math import isfinite
from typing import Any

from ...state.records import Metric
from ..programs import ANSWER

PROTOCOL = 1
MOST_METRICS = 1000
LONGEST_NAME = 200  # characters
SHOWN = 60  # characters of what is no answer


def request(model: str, version: int | None, checkpoint: str | None, parent: int | None, deadline: float) -> bytes:
    """Return what a program reads, one line of JSON; of the base model, there is nothing but its path."""
    asked = {"protocol": PROTOCOL, "model": model, "version": version, "checkpoint": checkpoint, "parent": parent}
    return json.dumps(asked | {"deadline_s": deadline}).encode() + b"\n"


def metrics_in(answer: bytes) -> dict[str, Metric]:
    """Return what an answer says was measured. Raises ValueError, with what is wrong with it, for anything else."""
    if len(answer) > ANSWER:
        raise ValueError(f"an answer of more than {ANSWER} bytes")
    try:
        said = json.loads(answer, parse_constant=_no_number)
    except (UnicodeDecodeError, RecursionError, json.JSONDecodeError):
        raise ValueError(f"no JSON: {_some(answer)}") from None
    if not isinstance(said, dict) or said.get("protocol") is not PROTOCOL:
        raise ValueError(f"no answer of protocol {PROTOCOL}: {_some(answer)}")
    metrics = said.get("metrics")
    if not isinstance(metrics, dict) or not 0 < len(metrics) <= MOST_METRICS:
        raise ValueError(f"an answer without metrics, or with more than {MOST_METRICS}: {_some(answer)}")
    return {_named(name): _metric(name, value) for name, value in metrics.items()}


def _no_number(text: str) -> float:
    raise ValueError(f"the number {text}")


def _named(name: str) -> str:
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a metric whose name is empty, not printable, or longer than {LONGEST_NAME} characters")
    return name


def _metric(name: str, said: Any) -> Metric:
    """Return one metric, whole."""
    given = said if isinstance(said, dict) else {}
    value, higher, n = given.get("value"), given.get("higher_is_better"), given.get("n")
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise ValueError(f"{name} has no finite value")
    if not isinstance(higher, bool):
        raise ValueError(f"{name} does not say whether higher_is_better")  # noqa: TRY004 - all is one kind of lie
    if isinstance(n, bool) or not isinstance(n, int) or not 0 < n < 2**63:
        raise ValueError(f"{name} does not say by n how many examples it was measured on")
    return Metric(float(value), higher, n)


def _is_finite(value: float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # an integer that is no double
        return False


def _some(answer: bytes) -> str:
    text = answer[: 4 * SHOWN].decode(errors="replace")
    return repr(text[:SHOWN]) + ("..." if len(text) > SHOWN else "")
