"""Results as the benchmark writes them, of made-up figures: what the page makes of them can be told by hand."""

from dataclasses import replace

from quality.records import Result, Verdict

TASKS = ("a", "b", "c")
ONE = Result(
    set="vision-20",
    kind="vision",
    training=101,
    order=101,
    method="gram",
    rule="gram",
    parameters={"epsilon": 0.1},
    key="",
    tasks=("b", "a", "c"),  # in the order of arrival
    final={"a": 90.0, "b": 80.0, "c": 70.0},
    unseen={"d": 40.0, "e": 50.0},
    curve=((95.0,), (85.0, 91.0), (81.0, 90.0, 70.0)),
    most=100,
    distance=0.51234,
    seconds=(1.0, 2.0, 3.0),
    state_bytes=300,
    model_bytes=200,
)


def result(final: float = 80.0, draw: int = 101, **other: object) -> Result:
    """Return a result whose tasks all have one accuracy."""
    scores = dict.fromkeys(TASKS, final)
    curve = tuple((final,) * folded for folded in range(1, 4))
    made = replace(ONE, training=draw, order=draw, final=scores, curve=curve)
    return replace(made, **other)  # type: ignore[arg-type]


def reference(method: str, final: float, draw: int = 101, **other: object) -> Result:
    """Return a result of what knows nothing of mergd, and says nothing of its cost."""
    nothing = {"rule": "", "parameters": {}, "seconds": (), "state_bytes": 0, "model_bytes": 0}
    return result(final, draw, method=method, **nothing | other)


def some() -> list[Result]:
    """Return some of all that there is to measure: two sets, one of them with a bad checkpoint, over three draws."""
    made = []
    for i, draw in enumerate((101, 102, 103)):
        bad = Verdict("bad", "held", ("norm-share",))
        made += [
            reference("individual", 98.0 + i, draw, unseen={}),
            reference("zero-shot", 50.0, draw, unseen={"d": 60.0, "e": 58.0}),
            reference("fusion-bench-opcm", 70.1 + i, draw),
            reference("plain-sum-0.3", 66.0 + i, draw, curve=()),
            reference("plain-sum-1", 61.0, draw, curve=()),
            result(85.0 + 2 * i, draw),
            result(74.0 + i, draw, method="tsvm", rule="tsvm"),
            result(70.0 + i, draw, method="opcm-block", rule="opcm"),
            result(70.0 + i + 0.1 * (i == 2), draw, method="opcm-block_diagonal", rule="opcm"),
            result(66.0, draw, set="text-8", method="opcm-block", rule="opcm"),
            result(60.0 + i, draw, set="vision-20+noise", curve=()),
            result(84.0 + i, draw, set="vision-20+noise-gate", curve=(), out=(bad,) if i else ()),
        ]
    return made
