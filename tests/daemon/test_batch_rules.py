"""A batch rule is no way to fold: a method does not take it, and says which rules fold."""

import pytest

from mergd.daemon.method import make_rule, method_of
from mergd.plugins.rules.batch_interface import is_batch
from mergd.state.errors import Misconfigured


@pytest.mark.parametrize("described", [{"rule": "pcb"}, {"rule": "average", "also": {"pcb": {}}}], ids=["rule", "also"])
def test_a_method_is_not_made_with_one(described: dict[str, object]) -> None:
    with pytest.raises(Misconfigured) as caught:
        method_of(described)
    assert "pcb must see all checkpoints" in str(caught.value)
    assert "mergd remerge --rule pcb" in caught.value.hint
    assert "karcher" not in caught.value.hint


def test_a_remerge_makes_one_with_checked_parameters() -> None:
    rule = make_rule("pcb", {"pcb_ratio": 0.2, "lambda": 1.2})
    assert is_batch(rule)
    assert (rule.pcb_ratio, rule.lambda_) == (0.2, 1.2)
    with pytest.raises(Misconfigured, match="pcb_ratio"):
        make_rule("pcb", {"pcb_ratio": 2.0})
