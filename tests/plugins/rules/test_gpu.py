"""Every rule on a CUDA device: the same result as on the processor, and the same random masks."""

import pytest
import torch
from contracts.registered import REGISTERED
from contracts.rule import BATCHES, WEIGHTS
from contracts.streaming import relative_error, survey_all, update_of
from torch import Tensor

from mergd.plugins.rules._random import draws
from mergd.plugins.rules.interface import Rule, Slots, Statistic
from mergd.state.reading import TORCH_DTYPE
from mergd.state.records import Counts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def published(rule: Rule, device: str) -> dict[str, Tensor]:
    """Fold five checkpoints on a device, and return the read-outs; what is random follows from what lies on the processor."""
    slots: dict[tuple[str, Statistic], Slots] = {
        (w.name, s): {n: torch.zeros(p.shape, dtype=TORCH_DTYPE[p.dtype], device=device) for n, p in s.slots(w).items()}
        for w in WEIGHTS
        for s in rule.keeps(w)
    }
    for folded, tau in enumerate(BATCHES["five"]):
        surveys = tuple(dict.fromkeys(survey for _, s in slots for survey in s.surveys))
        whole = survey_all(surveys, [(w, tau[w.name].to(device)) for w in WEIGHTS])
        for w in WEIGHTS:
            for s in rule.keeps(w):
                u = update_of(s, w, tau[w.name])
                extra = {name: tensor.to(device) for name, tensor in u.extra.items()}
                moved = type(u)(u.delta.to(device), 1.0, u.seed, 0, extra, whole)
                slots[w.name, s] = s.fold(slots[w.name, s], moved, w, Counts(folded, float(folded)), {}).slots
    return {w.name: rule.merged({s: slots[w.name, s] for s in rule.keeps(w)}, w, Counts(5, 5.0)) for w in WEIGHTS}


@pytest.mark.parametrize("rule", REGISTERED, ids=repr)
def test_a_rule_gives_on_a_gpu_what_it_gives_on_the_processor(rule: Rule) -> None:
    here, there = published(rule, "cpu"), published(rule, "cuda")
    assert {tensor.device.type for tensor in there.values() if tensor.numel()} == {"cuda"}
    errors = {name: relative_error(there[name].cpu(), here[name]) for name in here}
    assert max(errors.values()) < 1e-5, errors


def test_random_masks_are_the_same_on_every_device() -> None:
    assert torch.equal(draws(7, 3, 100_000, torch.device("cuda")).cpu(), draws(7, 3, 100_000))
