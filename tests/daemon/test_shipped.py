"""What is shipped beside the weights: what admission looks for, what a fold reads of it, and what enters the digest."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from support.models import CONFIG, Model, drop_adapter, fine_tuned, save_lone, save_model, tiny_base

from mergd.daemon.admission import Admission
from mergd.daemon.base import Base
from mergd.daemon.base import examine as examine_base
from mergd.daemon.folding import FoldResult, Head, fold
from mergd.daemon.forming import content_digest
from mergd.daemon.machine import Machine
from mergd.daemon.method import Method, method_of
from mergd.daemon.progress import Progress
from mergd.daemon.settings import Settings
from mergd.daemon.shipped import Shipping
from mergd.plugins.formats.interface import Candidate
from mergd.plugins.sources.directory import Directory
from mergd.state.errors import Busy, Refused
from mergd.state.reading import Reader
from mergd.state.records import Verdict
from mergd.state.store import Draft, Store

FISHER, PLAIN = method_of({"rule": "fisher"}), method_of({"rule": "average"})
PLACES = {"base_model": "org/name", "watch": "/watch", "state": "/state"}
MUCH, LITTLE = 256_000_000, 1_500  # bytes of working buffers


def fisher_of(model: Model, seed: int) -> Model:
    """Return what could be the Fisher of a model: a number for each of its numbers, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: tensor for name, tensor in model.items() if tensor.is_floating_point()}
    return {name: torch.rand(t.shape, generator=generator).sub(0.2).clamp(min=0) for name, t in weights.items()}


@dataclass
class Bench:
    """A base model, and checkpoints that are looked at and folded."""

    root: Path
    base: Base

    def place(self, name: str, fisher: Model | None, model: Model | None = None) -> Path:
        place = save_model(self.root / name, fine_tuned(tiny_base(), 1) if model is None else model)
        if fisher is not None:
            save_lone(place / "fisher.safetensors", fisher)
        return place

    def examine(self, place: Path, method: Method = FISHER, **settings: object) -> tuple[Candidate | None, Verdict]:
        sighting = Directory(place.parent).sight(place)
        assert sighting is not None
        return Admission(self.base, Settings.model_validate(PLACES | settings), method).examine(sighting)

    def admitted(self, place: Path, method: Method = FISHER, **settings: object) -> Candidate:
        candidate, verdict = self.examine(place, method, **settings)
        assert verdict == Verdict("admitted"), verdict
        assert candidate is not None
        return candidate

    def fold(self, candidate: Candidate, method: Method = FISHER, memory: int = MUCH) -> tuple[FoldResult, Model]:
        """Fold it as the first one; returns what came of it and the slots, by name and weight."""
        store, draft = Store(self.root), Draft(self.root / "draft")
        result = fold(self.base, candidate, Head(), method, draft, Machine(memory, 2), Progress())
        slots: Model = {}
        for (_, slot), layout in store.layouts_in(draft.slots, result.slots).items():
            with Reader(layout) as reader:
                slots |= {f"{slot}:{name}": reader.read(name) for name in layout.tensors}
        return result, slots


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, examine_base(save_model(tmp_path / "base", tiny_base(), CONFIG), Progress()))


# ---------------------------------------------------------------------------------------------------------- admission


def without(fisher: Model, name: str) -> Model:
    return {other: tensor for other, tensor in fisher.items() if other != name}


WRONG: dict[str, tuple[Callable[[Model], Model | None], str]] = {
    "no file": (lambda F: None, "no fisher.safetensors"),
    "no weight": (lambda F: without(F, "layer.tall.weight"), "without layer.tall.weight"),
    "nothing": (lambda F: {"other": torch.zeros(2)}, "without embed_tokens.weight, "),
    "another shape": (lambda F: F | {"layer.tall.weight": torch.zeros(4, 9)}, "shapes: layer.tall.weight [4, 9]"),
    "integers": (lambda F: F | {"layer.tall.weight": torch.zeros(9, 4, dtype=torch.int8)}, "layer.tall.weight of I8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_lacks_it_is_refused_by_name(bench: Bench, case: str) -> None:
    spoil, found = WRONG[case]
    place = bench.place("a", spoil(fisher_of(tiny_base(), 1)))
    _, verdict = bench.examine(place)
    assert verdict.decision == "refused"
    (reason,) = verdict.reasons
    assert reason.code == "needs-fisher"
    assert found in reason.found
    assert "fisher.safetensors" in reason.expected
    _, verdict = bench.examine(place, PLAIN)
    assert verdict == Verdict("admitted")  # other methods do not look at it


def test_a_lone_file_is_told_to_be_given_a_folder(bench: Bench) -> None:
    save_lone(bench.root / "x.safetensors", fine_tuned(tiny_base(), 1))
    _, verdict = bench.examine(bench.root / "x.safetensors")
    assert "a lone file" in verdict.reasons[0].found
    assert "in its folder" in verdict.reasons[0].expected


def test_a_link_to_elsewhere_is_refused(bench: Bench) -> None:
    place = bench.place("a", None)
    save_lone(bench.root / "elsewhere.safetensors", fisher_of(tiny_base(), 1))
    (place / "fisher.safetensors").symlink_to(bench.root / "elsewhere.safetensors")
    _, verdict = bench.examine(place)
    assert "a link to" in verdict.reasons[0].found


@pytest.mark.parametrize("left", [0, 7, 50, -1])
def test_what_is_still_written_is_waited_for(bench: Bench, left: int) -> None:
    place = bench.place("a", fisher_of(tiny_base(), 1))
    path = place / "fisher.safetensors"
    os.truncate(path, left if left >= 0 else path.stat().st_size - 1)
    with pytest.raises(Busy):
        bench.examine(place)


def test_names_are_replaced_and_passed_over_as_the_weights_are(bench: Bench) -> None:
    model, fisher = fine_tuned(tiny_base(), 1), fisher_of(tiny_base(), 1)
    turned = {f"model.{name}": tensor for name, tensor in model.items()}
    place = bench.place("a", {f"model.{name}": F for name, F in without(fisher, "layer.tall.weight").items()}, turned)
    candidate = bench.admitted(place, rename={r"^model\.": ""}, skip=["layer.tall.*"])
    assert candidate.shipped["fisher"].parts.keys() == without(fisher, "layer.tall.weight").keys()
    _, slots = bench.fold(candidate)
    assert torch.equal(slots["fisher:layer.wide.weight"], fisher["layer.wide.weight"])
    assert not slots["fisher:layer.tall.weight"].any()


def test_an_adapter_ships_the_full_weights_that_it_changes(bench: Bench) -> None:
    fisher = fisher_of(tiny_base(), 1)
    place = drop_adapter(bench.root / "a")
    save_lone(place / "fisher.safetensors", {"layer.wide.weight": fisher["layer.wide.weight"]})
    _, verdict = bench.examine(place)
    assert "without layer.matrix.weight" in verdict.reasons[0].found
    save_lone(place / "fisher.safetensors", {"layer.matrix.weight": fisher["layer.matrix.weight"]})
    _, slots = bench.fold(bench.admitted(place))
    assert torch.equal(slots["fisher:layer.matrix.weight"], fisher["layer.matrix.weight"])
    assert not slots["fisher:layer.wide.weight"].any()


# ------------------------------------------------------------------------------------------------------------ the fold


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory", [MUCH, LITTLE])
def test_each_block_gets_its_rows(bench: Bench, memory: int, dtype: torch.dtype) -> None:
    fisher = {name: F.to(dtype) for name, F in fisher_of(tiny_base(), 1).items()}
    result, slots = bench.fold(bench.admitted(bench.place("a", fisher)), memory=memory)
    for name, F in fisher.items():
        torch.testing.assert_close(slots[f"fisher:{name}"], F.float(), rtol=0, atol=0)
        delta = fine_tuned(tiny_base(), 1)[name] - tiny_base()[name]
        torch.testing.assert_close(slots[f"weighted:{name}"], F.float() * delta)
    assert result.bytes_read > sum(F.nbytes for F in fisher.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, -1e-30])
@pytest.mark.parametrize("draft", [True, False])
def test_numbers_that_it_cannot_have_are_refused(bench: Bench, value: float, draft: bool) -> None:
    fisher = fisher_of(tiny_base(), 1)
    fisher["layer.wide.weight"][-1, -1] = value
    candidate = bench.admitted(bench.place("a", fisher))
    with pytest.raises(Refused) as raised:
        if draft:
            bench.fold(candidate, memory=LITTLE)
        else:
            fold(bench.base, candidate, Head(), FISHER, None, Machine(LITTLE), Progress())
    (reason,) = raised.value.reasons
    assert reason.code == "needs-fisher"
    assert "fisher.safetensors, layer.wide.weight" in reason.found


def test_a_larger_vocabulary_brings_only_the_rows_that_both_have(bench: Bench) -> None:
    place = bench.place("a", None, fine_tuned(tiny_base(), 1) | {"embed_tokens.weight": torch.zeros(12, 6)})
    save_lone(place / "fisher.safetensors", fisher_of(tiny_base(), 1) | {"embed_tokens.weight": torch.ones(12, 6)})
    for folder in (bench.root / "base", place):
        (folder / "vocab.json").write_text('{"' + '": 0, "'.join("abcdefghijk") + '": 0}')
    _, verdict = bench.examine(place)
    assert [reason.code for reason in verdict.reasons] == ["vocabulary"]
    candidate = bench.admitted(place, vocabulary="base-rows")
    result, slots = bench.fold(candidate, memory=LITTLE)
    assert slots["fisher:embed_tokens.weight"].shape == (11, 6)
    assert result.digest == content_digest(candidate, MUCH, Progress())


def test_a_candidate_that_was_looked_at_for_another_method_is_looked_at_again(bench: Bench) -> None:
    candidate = bench.admitted(bench.place("a", None), PLAIN)
    with pytest.raises(Busy, match="another method"):
        bench.fold(candidate)


# ---------------------------------------------------------------------------------------------------------- the digest


def test_it_is_content_only_where_it_is_needed(bench: Bench) -> None:
    fishers: tuple[Model | None, ...] = (None, fisher_of(tiny_base(), 1), fisher_of(tiny_base(), 2))
    none, one, other = (bench.place(name, fisher) for name, fisher in zip("abc", fishers, strict=True))
    plain = {content_digest(bench.admitted(place, PLAIN), MUCH, Progress()) for place in (none, one, other)}
    assert len(plain) == 1
    needed = [content_digest(bench.admitted(place), MUCH, Progress()) for place in (one, other)]
    assert len({*plain, *needed}) == 3


@pytest.mark.parametrize("name", fisher_of(tiny_base(), 1))
def test_any_number_of_it_makes_another_content(bench: Bench, name: str) -> None:
    fishers = fisher_of(tiny_base(), 1), fisher_of(tiny_base(), 1)
    fishers[1][name].view(-1)[-1] += 0.5
    places = [bench.place(place, fisher) for place, fisher in zip("ab", fishers, strict=True)]
    assert len({content_digest(bench.admitted(place), MUCH, Progress()) for place in places}) == 2


@pytest.mark.parametrize("memory", [MUCH, LITTLE])
def test_the_digest_of_a_fold_is_that_of_reading_alone(bench: Bench, memory: int) -> None:
    candidate = bench.admitted(bench.place("a", fisher_of(tiny_base(), 1) | {"unused": torch.ones(3)}))
    result, _ = bench.fold(candidate, memory=memory)
    assert result.digest == content_digest(candidate, memory, Progress()) != result.weights_digest
    same = bench.admitted(bench.place("b", fisher_of(tiny_base(), 1)))  # without what nothing reads
    assert content_digest(same, MUCH, Progress()) == result.digest


def test_a_weight_may_bear_the_name_of_what_is_shipped(bench: Bench) -> None:
    fisher = fisher_of(tiny_base(), 1)
    strange = fine_tuned(tiny_base(), 1) | {"fisher:layer.wide.weight": fisher["layer.wide.weight"].clone()}
    candidate = bench.admitted(bench.place("a", fisher, strange), extra="ignore")
    result, _ = bench.fold(candidate)
    assert result.digest == content_digest(candidate, MUCH, Progress())


# ------------------------------------------------------------------------------------------------- it changes meanwhile


@pytest.fixture
def candidate(bench: Bench) -> Candidate:
    return bench.admitted(bench.place("a", fisher_of(tiny_base(), 1)))


CHANGES: dict[str, Callable[[Path], object]] = {
    "replaced": lambda path: save_lone(path, fisher_of(tiny_base(), 2)),
    "gone": lambda path: path.unlink(),
    "cut": lambda path: os.truncate(path, 100),
    "touched": lambda path: os.utime(path, ns=(1, 1)),
}


@pytest.mark.parametrize("how", CHANGES)
def test_what_changed_before_the_fold_is_looked_at_again(bench: Bench, candidate: Candidate, how: str) -> None:
    CHANGES[how](Path(candidate.place) / "fisher.safetensors")
    with pytest.raises(Busy):
        bench.fold(candidate)
    with pytest.raises(Busy):
        content_digest(candidate, MUCH, Progress())


@pytest.mark.parametrize("how", CHANGES)
def test_what_changed_while_it_was_open_is_seen(bench: Bench, candidate: Candidate, how: str) -> None:
    with ExitStack() as stack:
        shipping = Shipping(candidate, stack)
        assert shipping.opened_as_sighted()
        assert shipping.same_as_before()
        CHANGES[how](Path(candidate.place) / "fisher.safetensors")
        assert not shipping.same_as_before()


def test_another_layout_than_admission_saw_is_seen(bench: Bench, candidate: Candidate) -> None:
    stale = replace(candidate.shipped["fisher"].layout, tensors={})
    shipped = {"fisher": replace(candidate.shipped["fisher"], layout=stale)}
    with ExitStack() as stack:
        assert not Shipping(replace(candidate, shipped=shipped), stack).opened_as_sighted()
