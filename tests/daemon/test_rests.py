"""Rests: longer each time, up to a bound, and from the beginning after a success."""

from mergd.daemon.rests import LONGEST, Rests


def test_each_is_twice_the_one_before_up_to_a_bound() -> None:
    rests = Rests()
    assert [rests.begin(1) for _ in range(7)] == [30, 60, 120, 240, 480, LONGEST, LONGEST]
    assert rests.left(1) > LONGEST / 2
    assert rests.left(2) == 0


def test_what_is_asked_for_is_granted_within_the_bound() -> None:
    rests = Rests()
    assert rests.begin(1, at_least=100) == 100
    assert rests.begin(1, at_least=1e9) == LONGEST, "whatever a clock says"


def test_a_success_ends_it() -> None:
    rests = Rests()
    rests.begin(1)
    rests.begin(1)
    rests.forget(1)
    assert rests.left(1) == 0
    assert rests.begin(1) == 30
