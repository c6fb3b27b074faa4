"""The built-in gate: what it refuses and holds, what it lets pass, and where each limit begins."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan, sqrt

import pytest

from mergd.plugins.gates.sane import Sane
from mergd.state.records import Contribution, Drafted, Totals, Weight, WeightKind, WeightReport

BASE_NORM = 10.0  # of one matrix of 100 numbers
SHAPES = {
    "layer.weight": Weight("layer.weight", (10, 10), "matrix"),
    "layer.bias": Weight("layer.bias", (10,), "other"),
}


def drafted(norm: float = 1.0, dot: float = 0.0, past: Sequence[Contribution] = (), **more: object) -> Drafted:
    """Return a draft whose task vector has this norm, all of it in one matrix."""
    weights = {
        "layer.weight": WeightReport(norm, BASE_NORM, 0, 1, dot),
        "layer.bias": WeightReport(0.0, 0.1, 0, 1),
    }
    cosines = (0.0,) * len(past)
    plain = Drafted(
        version=len(past) + 1, parent=len(past) or None, checkpoint="new", model=None, totals=Totals(), weights=weights,
        place="/watch/new", contributor="alice", shapes=SHAPES, parent_norm=1.0, past=tuple(past), cosines=cosines,
    )  # fmt: skip
    return replace(plain, **more)  # type: ignore[arg-type]


def earlier(*norms: float, who: str = "alice") -> tuple[Contribution, ...]:
    """Return folds of these norms, the first one the newest."""
    count = len(norms)
    return tuple(Contribution(count - i, f"old-{count - i}", who, norm, b"") for i, norm in enumerate(norms))


def codes(judged: Drafted, gate: Sane | None = None) -> list[str]:
    return [reason.code for reason in (gate or Sane()).judge(judged).reasons]


def test_a_usual_checkpoint_is_admitted() -> None:
    assert Sane().judge(drafted()).decision == "admitted"
    assert Sane().judge(drafted(past=earlier(1, 1.1, 0.9, 1, 1.2, 0.8), dot=0.3)).decision == "admitted"


@pytest.mark.parametrize("number", [nan, inf])
def test_what_is_not_finite_is_refused_and_nothing_else_is_said(number: float) -> None:
    verdict = Sane().judge(drafted(number, past=earlier(1, 1, 1, 1, 1)))
    assert (verdict.decision, [reason.code for reason in verdict.reasons]) == ("refused", ["not-finite"])


def test_all_doubts_are_told_at_once_and_each_ends_in_the_commands_that_decide() -> None:
    verdict = Sane(per_day=1).judge(drafted(20.0, dot=-15.0, past=earlier(1, 1, 1, 1, 1), last_day=3))
    assert verdict.decision == "held"
    found = [reason.code for reason in verdict.reasons]
    assert found == ["far-from-base", "far-weight", "unusual-norm", "against-merge", "too-many"]
    for reason in verdict.reasons:
        assert "mergd approve /watch/new" in reason.next_step
        assert "mergd refuse /watch/new --why" in reason.next_step


# ------------------------------------------------------------------------------------------------ against the base


def test_a_strangers_base_shows_at_the_first_checkpoint() -> None:
    assert codes(drafted(sqrt(2) * BASE_NORM)) == ["far-from-base", "far-weight"]  # independent, of the same norm


@pytest.mark.parametrize(("ratio", "found"), [(0.49, []), (0.51, ["far-from-base"]), (0.99, ["far-from-base"])])
def test_the_whole_may_be_half_the_bases_norm_away(ratio: float, found: list[str]) -> None:
    assert codes(drafted(ratio * BASE_NORM)) == found


def one_wild_matrix(base_norm: float) -> Drafted:
    """Return a draft with a matrix that is three norms away from the base's, beside a large one that is not."""
    weights = {"wild": WeightReport(3 * base_norm, base_norm, 0, 1), "large": WeightReport(1.0, 1000.0, 0, 1)}
    shapes = {name: Weight(name, (10, 10), "matrix") for name in weights}
    return replace(drafted(), weights=weights, shapes=shapes)


def test_one_matrix_far_away_is_named() -> None:
    (reason,) = Sane().judge(one_wild_matrix(10.0)).reasons
    assert reason.code == "far-weight"
    assert "wild 3" in reason.found


def test_a_matrix_that_the_base_has_near_zero_may_be_learnt_anew() -> None:
    assert codes(one_wild_matrix(0.0)) == codes(one_wild_matrix(0.01)) == []


@pytest.mark.parametrize("kind", ["lookup", "other"])
def test_biases_and_lookups_may_be_far_away(kind: WeightKind) -> None:
    wild = one_wild_matrix(10.0)
    assert codes(replace(wild, shapes={**wild.shapes, "wild": Weight("wild", (10, 10), kind)})) == []


def test_a_base_model_of_zeros_has_no_norm_to_compare_with() -> None:
    zero = {"layer.weight": WeightReport(1.0, 0.0, 0, 1), "layer.bias": WeightReport(0.0, 0.0, 0, 1)}
    assert codes(drafted(weights=zero)) == []


# --------------------------------------------------------------------------------------------- against the history

SPREAD = earlier(1.0, 1.2, 0.8, 1.1, 0.9, 1.3, 0.7)  # the log norm's robust sigma is about 0.27


@pytest.mark.parametrize(
    ("norm", "past", "held"),
    [
        (2.9, earlier(1, 1, 1, 1, 1), False),  # within a factor of 3, however alike the others are
        (3.1, earlier(1, 1, 1, 1, 1), True),
        (0.32, earlier(1, 1, 1, 1, 1), True),
        (4.9, SPREAD, False),  # beyond a factor of 3, within 6 sigmas
        (4.9, earlier(1, 1, 1, 1), False),  # too few to compare with
        (0.0, earlier(1, 1, 1, 1, 1), True),  # the base model itself
        (1.0, earlier(0, 0, 0, 0, 0, 1), False),  # those that changed nothing say nothing
        (4.9, earlier(*[4.0] * 200, *[1.0] * 500), False),  # the newest 200 count
    ],
)
def test_a_norm_is_compared_with_those_before_it(norm: float, past: Sequence[Contribution], held: bool) -> None:
    assert codes(drafted(norm, past=past)) == (["unusual-norm"] if held else [])


@pytest.mark.parametrize(("dot", "held"), [(-0.49, False), (-0.51, True), (-1.0, True), (1.0, False)])
def test_a_cosine_with_the_running_merge_below_the_limit_is_held(dot: float, held: bool) -> None:
    assert codes(drafted(dot=2 * dot, norm=2.0)) == (["against-merge"] if held else [])


def test_before_the_first_fold_there_is_no_merge_to_be_against() -> None:
    assert codes(drafted(dot=0.0, parent_norm=0.0)) == []


@pytest.mark.parametrize(
    ("cosine", "norm", "held"),
    [(0.995, 1.0, True), (0.989, 1.0, False), (-0.999, 1.0, False), (1.0, 1.03, False), (1.0, 1.015, True)],
)
def test_a_near_copy_of_an_earlier_one_is_held(cosine: float, norm: float, held: bool) -> None:
    judged = replace(drafted(norm, past=earlier(1.0, 1.0)), cosines=(0.2, cosine))
    assert codes(judged) == (["near-copy"] if held else [])
    if held:
        assert "old-1 (v1)" in Sane().judge(judged).reasons[0].found


# ------------------------------------------------------------------------------------------------ shares and paces


def test_one_contributor_among_several_may_have_its_share() -> None:
    past = earlier(1, 1, who="alice") + earlier(1, 1, 1, who="bob")
    assert codes(drafted(past=past), Sane(share=0.5)) == []  # three of six
    assert codes(drafted(2.0, past=past), Sane(share=0.5)) == ["too-much-of-one"]
    assert codes(drafted(2.0, past=past)) == []  # nothing is asked for


def test_with_one_contributor_or_few_folds_there_is_no_share_to_speak_of() -> None:
    assert codes(drafted(past=earlier(1, 1, 1, 1, 1, 1)), Sane(share=0.5)) == []
    assert codes(drafted(past=earlier(1, 1, 1, 1, who="bob")), Sane(share=0.1)) == []


def test_so_many_folds_a_day_and_then_a_person_looks() -> None:
    assert codes(drafted(last_day=4), Sane(per_day=5)) == []
    assert codes(drafted(last_day=5), Sane(per_day=5)) == ["too-many"]


def test_every_limit_can_be_switched_off() -> None:
    off = Sane(norm=0, weight_norm=0, sigmas=0, cosine=0, near_copy=0, share=0, per_day=0)
    wildest = replace(drafted(1e6, dot=-1e6, past=earlier(1, 1, 1, 1, 1), last_day=1000), cosines=(1.0,) * 5)
    assert codes(wildest, off) == []
