"""Gating: what is measured when, what is held against what, and that one that only observes decides nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from contracts.gate import frame
from hypothesis import given
from hypothesis import strategies as st

from mergd.daemon.gating import Gating, Measured, Models, in_words
from mergd.daemon.progress import Progress
from mergd.plugins.gates.program import Model, Program
from mergd.plugins.gates.tolerance import Tolerance
from mergd.plugins.programs import Ran
from mergd.state.errors import Abandoned
from mergd.state.records import ADMITTED, Metric, Metrics, Verdict

BASE, HEAD, DRAFT = (Model(name, f"/{name}", name, "/watch/a") for name in ("base", "head", "draft"))
Answers = Mapping[str, Ran]  # by the digest of the model


@dataclass
class Runner:
    """Answers as it is told to, and remembers what it was asked about."""

    answers: Answers
    asked: list[str] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def run(self, request: bytes, seconds: float, stopped: Callable[[], bool]) -> Ran:
        name = next(name for name in ("base", "head", "draft") if f"/{name}".encode() in request)
        self.asked.append(name)
        self.meanwhile()
        return Ran(None, b"", "it was stopped") if stopped() else self.answers[name]


def says(value: float, **more: Any) -> Ran:
    return Ran(0, frame(value=value, **more), "")


def judge(
    answers: Answers,
    known: Mapping[str, float] | None = None,
    head: Model | None = HEAD,
    best: Metrics | None = None,
    from_base: bool = False,
    **program: Any,
) -> tuple[Verdict, list[str], list[str]]:
    """Return the verdict, what the program was asked about, and what is to be written down."""
    runner, gating = Runner(answers), Gating()
    gate = Program("eval", runner, tolerance=Tolerance(0.1, 0.3), **program)
    metrics = {digest: {"a": Metric(value, True, 10)} for digest, value in (known or {}).items()}
    verdict = gating.judge(
        {"eval": Measured(gate, "it", metrics.get, best or {}, from_base)}, Models(BASE, head, DRAFT), Progress()
    )
    return verdict, runner.asked, [evaluation.digest for evaluation in gating.measured]


def codes(verdict: Verdict) -> list[str]:
    return [reason.code for reason in verdict.reasons]


def test_base_head_and_draft_are_measured_and_written_down() -> None:
    verdict, asked, written = judge({"base": says(0.5), "head": says(0.5), "draft": says(0.5)})
    assert verdict == ADMITTED
    assert asked == written == ["base", "head", "draft"]


def test_what_is_known_is_not_measured() -> None:
    assert judge({"draft": says(0.5)}, {"base": 0.5, "head": 0.5}) == (ADMITTED, ["draft"], ["draft"])
    assert judge({}, {"base": 0.5, "head": 0.5, "draft": 0.5}) == (ADMITTED, [], [])


def test_before_there_is_a_version_the_base_model_is_the_head() -> None:
    verdict, asked, _ = judge({"base": says(0.5), "draft": says(0.35)}, head=None)
    assert (codes(verdict), asked) == (["metric-drop"], ["base", "draft"])


def test_a_total_drop_is_counted_from_the_best_on_the_way() -> None:
    answers, best = {"base": says(0.9), "head": says(0.5), "draft": says(0.45)}, {"a": Metric(0.8, True, 10)}
    assert judge(answers)[0] == ADMITTED  # the base model is not on the way
    assert codes(judge(answers, from_base=True)[0]) == ["metric-total-drop"]
    assert codes(judge(answers, best=best)[0]) == ["metric-total-drop"]


@pytest.mark.parametrize("one", ["base", "head"])
@pytest.mark.parametrize("ran", [Ran(1, b"", "no CUDA"), Ran(65, b"", "no CUDA"), Ran(0, b"no CUDA", "")])
def test_what_nobody_can_hold_it_against_holds_it(one: str, ran: Ran) -> None:
    verdict, asked, written = judge({"base": says(0.5), "head": says(0.5), "draft": says(0.5)} | {one: ran})
    assert (verdict.decision, codes(verdict)) == ("held", ["gate-failed"])
    assert f"could not measure {one}: " in verdict.reasons[0].found
    assert "no CUDA" in verdict.reasons[0].found
    assert asked[-1] == one
    assert one not in written


OUTCOMES = st.builds(says, st.floats(-1e6, 1e6), higher_is_better=st.booleans()) | st.builds(
    Ran, st.none() | st.integers(-64, 255), st.binary(max_size=40), st.text(max_size=9)
)


@given(OUTCOMES, OUTCOMES, OUTCOMES)
def test_one_that_only_observes_never_holds(base: Ran, head: Ran, draft: Ran) -> None:
    assert judge({"base": base, "head": head, "draft": draft}, enforces=False)[0] == ADMITTED


@given(OUTCOMES, OUTCOMES, OUTCOMES)
def test_nothing_passes_but_whole_answers_within_tolerance(base: Ran, head: Ran, draft: Ran) -> None:
    verdict, _, written = judge({"base": base, "head": head, "draft": draft})
    if verdict == ADMITTED:
        assert written == ["base", "head", "draft"]


def test_one_that_is_stopped_ends_the_work_and_is_not_written_down() -> None:
    progress, gating = Progress(), Gating()
    runner = Runner({"base": says(0.5)}, meanwhile=progress.abandon.set)
    gates = {"eval": Measured(Program("eval", runner), "it")}
    with pytest.raises(Abandoned):
        gating.judge(gates, Models(BASE, HEAD, DRAFT), progress)
    assert (runner.asked, list(gating.measured), progress.wait) == (["base"], [], None)


def test_while_it_runs_the_progress_says_until_when() -> None:
    progress = Progress()
    seen: list[tuple[str, float]] = []

    def look() -> None:
        assert progress.wait is not None
        assert progress.deadline is not None
        seen.append((str(progress), progress.deadline - progress.wait.since))

    runner = Runner({"base": says(0.5), "draft": says(0.5)}, meanwhile=look)
    gates = {"eval": Measured(Program("eval", runner, 60.0), "it")}
    draft = Model("draft", "/draft", "the draft", "/watch/a")
    Gating().judge(gates, Models(BASE, None, draft), progress)
    assert seen == [
        ("waiting for gate eval on base, 0 s of 60 s", 60),
        ("waiting for gate eval, 0 s of 60 s", 60),
    ]
    assert progress.deadline is None


def test_a_refusal_ends_it_and_holds_are_gathered() -> None:
    answers = {"base": says(0.5), "head": says(0.5), "draft": says(0.1)}
    drops = Measured(Program("drops", Runner(answers)), "drops", from_base=True)
    fails = Measured(Program("fails", Runner(answers | {"draft": Ran(1, b"", "")})), "fails", from_base=True)
    refuses = Measured(Program("refuses", Runner(answers | {"draft": Ran(65, b"", "no")})), "refuses", from_base=True)
    models = Models(BASE, HEAD, DRAFT)
    both = Gating().judge({"drops": drops, "fails": fails}, models, Progress())
    assert (both.decision, codes(both)) == ("held", ["metric-drop", "metric-total-drop", "gate-failed"])
    assert Gating().judge({"drops": drops, "refuses": refuses}, models, Progress()).decision == "refused"


def test_many_metrics_fill_no_line() -> None:
    assert (
        in_words({f"m{k}": Metric(k / 8, True, 1) for k in range(9)})
        == "m0 0, m1 0.125, m2 0.25, m3 0.375, m4 0.5, 4 more"
    )
