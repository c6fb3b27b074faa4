"""What gates' programs are asked, and that no answer but a whole one counts, whatever they say."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergd.plugins.gates.answers import MOST_METRICS, metrics_in, request
from mergd.plugins.programs import ANSWER
from mergd.state.records import Metric

GOOD = {"value": 0.5, "higher_is_better": True, "n": 10}


def answer(metrics: Any = None, **changes: Any) -> bytes:
    return json.dumps({"protocol": 1, "metrics": {"a": GOOD} if metrics is None else metrics} | changes).encode()


def test_a_request_is_one_line_of_json() -> None:
    asked = request("/state/drafts/000002/model", 2, "a\nname", 1, 1800.0)
    assert asked.count(b"\n") == 1
    assert json.loads(asked) == {
        "protocol": 1,
        "model": "/state/drafts/000002/model",
        "version": 2,
        "checkpoint": "a\nname",
        "parent": 1,
        "deadline_s": 1800.0,
    }


METRICS = st.builds(Metric, st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.integers(1, 2**63 - 1))
NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=20)


@given(st.dictionaries(NAMES, METRICS, min_size=1, max_size=9))
def test_what_an_answer_says_is_what_is_read(metrics: dict[str, Metric]) -> None:
    assert metrics_in(answer({name: vars(metric) for name, metric in metrics.items()})) == metrics


LIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"accuracy: 0.9",
    "half": answer()[:-1],
    "no UTF-8": b"\xff" + answer(),
    "a list": b"[]",
    "deep": b"[" * 50_000,
    "another protocol": answer(protocol=2),
    "protocol true": answer(protocol=True),
    "protocol as text": answer(protocol="1"),
    "protocol 1.0": answer(protocol=1.0),
    "without metrics": b'{"protocol": 1}',
    "no metric": answer({}),
    "a list of metrics": answer([GOOD]),
    "too many metrics": answer({str(k): GOOD for k in range(MOST_METRICS + 1)}),
    "too long": answer() + b" " * ANSWER,
    "a bare number": answer({"a": 0.9}),
    "NaN": answer({"a": GOOD | {"value": float("nan")}}),
    "infinity": answer({"a": GOOD | {"value": float("-inf")}}),
    "beyond doubles": answer({"a": GOOD | {"value": 0}}).replace(b": 0,", b": 1e999,"),
    "an integer beyond doubles": answer({"a": GOOD | {"value": 10**400}}),
    "digits without end": answer({"a": GOOD | {"value": 0}}).replace(b": 0,", b": 1" + b"0" * 5000 + b","),
    "value true": answer({"a": GOOD | {"value": True}}),
    "value as text": answer({"a": GOOD | {"value": "0.9"}}),
    "no value": answer({"a": {"higher_is_better": True, "n": 1}}),
    "no direction": answer({"a": {"value": 1, "n": 1}}),
    "direction as a number": answer({"a": GOOD | {"higher_is_better": 1}}),
    "no n": answer({"a": {"value": 1, "higher_is_better": True}}),
    "n of 0": answer({"a": GOOD | {"n": 0}}),
    "n too large": answer({"a": GOOD | {"n": 2**63}}),
    "a half n": answer({"a": GOOD | {"n": 1.5}}),
    "an empty name": answer({"": GOOD}),
    "a name with a line break": answer({"a\nb": GOOD}),
    "a lone surrogate": answer({"\ud800": GOOD}),
    "a long name": answer({"a" * 201: GOOD}),
}


@pytest.mark.parametrize("lie", LIES)
def test_anything_else_is_no_answer(lie: str) -> None:
    with pytest.raises(ValueError) as raised:
        metrics_in(LIES[lie])
    assert 0 < len(str(raised.value)) < 400  # it is shown to people


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_no_bytes_do_worse_than_being_no_answer(said: bytes) -> None:
    with pytest.raises(ValueError):
        metrics_in(said)
