"""Folding: blocks of rows, read-outs that are no slot, candidates that change meanwhile, and the way out in the middle."""

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.models import CONFIG, Model, fine_tuned, load_model, save_model, task_vector, tiny_base, weight_errors
from torch import Tensor

from mergd.daemon.admission import Admission
from mergd.daemon.base import Base, read_contents
from mergd.daemon.base import examine as examine_base
from mergd.daemon.folding import FoldResult, Head, fold
from mergd.daemon.forming import content_digest
from mergd.daemon.machine import Machine
from mergd.daemon.method import Method
from mergd.daemon.progress import Progress
from mergd.daemon.publishing import publish
from mergd.daemon.settings import Settings
from mergd.plugins.formats.interface import Candidate, Contents
from mergd.plugins.rules.average import Average
from mergd.plugins.rules.interface import Folded, ReadOut, Rule, Slots, Statistic, Sum, TaskSum, Update
from mergd.plugins.rules.opcm import Opcm
from mergd.plugins.sources.directory import Directory
from mergd.state.errors import Abandoned, Busy, Refused
from mergd.state.headers import layout_of
from mergd.state.linking import Linking
from mergd.state.reading import Reader
from mergd.state.records import Counts, SlotSpec, Totals, Weight
from mergd.state.store import Draft, Store

MUCH = 256_000_000  # bytes of working buffers
LITTLE = 1_500


def settings(memory: int) -> Settings:
    """Return settings that say how much memory a fold may take."""
    places = {"base_model": "org/name", "watch": "/watch", "state": "/state"}
    return Settings.model_validate(places | {"memory": max(memory, 1_000_000)}).model_copy(update={"memory": memory})


@dataclass
class Bench:
    """One fold after another, without history or daemon."""

    root: Path
    base: Base
    head: Head
    count: int = 0

    def candidate(self, model: Model) -> Candidate:
        """Save a checkpoint and admit it."""
        place = save_model(self.root / f"checkpoint-{self.count}", model)
        os.utime(place / "model.safetensors", ns=(10**18, 10**18))  # a later time differs however coarse the clock is
        return self.admitted(place)

    def admitted(self, place: Path) -> Candidate:
        """Admit what lies at a place now. Raises Busy while it is not whole."""
        sighting = Directory(self.root).sight(place)
        assert sighting is not None
        candidate, verdict = Admission(self.base, settings(MUCH)).examine(sighting)
        assert candidate is not None, verdict
        return candidate

    def fold(
        self, candidate: Candidate, rule: Rule, memory: int = MUCH, progress: Progress | None = None
    ) -> tuple[FoldResult, Draft]:
        """Fold a candidate onto the head, which stays where it is."""
        self.count += 1
        draft = Draft(self.root / f"draft-{self.count}")
        method, machine = Method("", rule, {}), Machine(memory, 2)
        return fold(self.base, candidate, self.head, method, draft, machine, progress or Progress()), draft

    def go_on(self, result: FoldResult, draft: Draft) -> None:
        """Let the head be what was folded."""
        slots = {
            (entry["statistic"], entry["slot"]): layout_of([draft.slots / entry["name"]]) for entry in result.slots
        }
        self.head = Head(result.totals, slots)

    def published(self, result: FoldResult, draft: Draft, rule: Rule, memory: int = MUCH) -> Model:
        """Publish what was folded and return its weights."""
        scale, linking = rule.scale(result.totals), Linking(Store(self.root), None)
        publish(self.base, result.readouts, scale, draft, settings(memory), Progress(), linking)
        return load_model(draft.model)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return bench_of(tmp_path, tiny_base())


def bench_of(root: Path, model: Model, config: Mapping[str, object] = CONFIG) -> Bench:
    return Bench(root, examine_base(save_model(root / "base", model, config), Progress()), Head())


def tall_base() -> Model:
    """Return a model whose weights take many blocks of rows where memory is little."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"embed_tokens.weight": (101, 8), "experts.up_proj": (9, 6, 5), "long.bias": (333,), "m.weight": (40, 8)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | {
        "position_ids": torch.arange(100).reshape(50, 2)
    }


# ------------------------------------------------------------------------------------------------------ blocks of rows


@pytest.mark.parametrize("rule", [Opcm(), Opcm(variant="paper"), Average()], ids=repr)
def test_blocks_of_rows_give_the_same_bytes_as_the_whole(tmp_path: Path, rule: Rule) -> None:
    outcomes = []
    for memory in (MUCH, LITTLE):
        bench = bench_of(tmp_path / str(memory), tall_base())
        for seed in range(3):
            candidate = bench.candidate(fine_tuned(tall_base(), seed))
            result, draft = bench.fold(candidate, rule, memory)
            bench.go_on(result, draft)
        published = bench.published(result, draft, rule, memory)
        outcomes.append((result.digest, [file.blake3 for file in result.files], published))
    (digest, slots, whole), (other_digest, other_slots, blocks) = outcomes
    assert digest == other_digest
    assert slots == other_slots
    assert all(torch.equal(whole[name], blocks[name]) for name in whole)


def test_blocks_of_rows_are_really_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, int] | None] = []
    read = Reader.read

    def watched(self: Reader, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        reads.append(rows)
        return read(self, name, rows)

    bench = bench_of(tmp_path, tall_base())
    candidate = bench.candidate(fine_tuned(tall_base(), 1))
    monkeypatch.setattr(Reader, "read", watched)
    bench.fold(candidate, Average(), LITTLE)
    assert len([rows for rows in reads if rows is not None]) > 50
    assert all(rows is None or rows[1] - rows[0] < 34 for rows in reads)


def test_norms_and_reports_do_not_depend_on_the_blocks(tmp_path: Path) -> None:
    results = []
    for memory in (MUCH, LITTLE):
        bench = bench_of(tmp_path / str(memory), tall_base())
        results.append(bench.fold(bench.candidate(fine_tuned(tall_base(), 1)), Opcm(), memory)[0])
    for name, report in results[0].reports.items():
        assert results[1].reports[name].task_norm == pytest.approx(report.task_norm, rel=1e-12)
        assert results[1].reports[name].base_norm == pytest.approx(report.base_norm, rel=1e-12)
        assert report.base_norm == pytest.approx(float(tall_base()[name].double().norm()), rel=1e-12)
    assert results[1].totals.mean_norm == pytest.approx(results[0].totals.mean_norm, rel=1e-12)


def test_the_digest_is_the_contents_with_or_without_a_fold(bench: Bench) -> None:
    candidate = bench.candidate(fine_tuned(tiny_base(), 1))
    result, _ = bench.fold(candidate, Opcm())
    assert result.digest == content_digest(candidate, MUCH, Progress()) == content_digest(candidate, LITTLE, Progress())
    assert result.bytes_read == bench.base.layout.nbytes - 5 * 8 + candidate.contents.layout.nbytes
    assert result.bytes_written > 0


@pytest.mark.parametrize("memory", [MUCH, LITTLE])
@pytest.mark.parametrize("rule", [Opcm(), Opcm(variant="paper"), Average()], ids=repr)
def test_a_read_out_is_zero_only_if_all_of_it_is(tmp_path: Path, rule: Rule, memory: int) -> None:
    bench = bench_of(tmp_path, tall_base())
    model = tall_base()
    model["embed_tokens.weight"][0, 0] += 1
    model["long.bias"][-1] += 1
    result, draft = bench.fold(bench.candidate(model), rule, memory)
    assert {name for name, readout in result.readouts.items() if readout.zero} == {"experts.up_proj", "m.weight"}
    bench.go_on(result, draft)
    later, _ = bench.fold(bench.candidate(tall_base()), rule, memory)
    assert {name for name, readout in later.readouts.items() if readout.zero} == {"experts.up_proj", "m.weight"}


def test_a_number_whose_square_is_zero_is_not_zero(tmp_path: Path) -> None:
    base = {"tiny.weight": torch.zeros(3, 4, dtype=torch.float64), "other.bias": torch.zeros(3)}
    bench = bench_of(tmp_path, base)
    model = {"tiny.weight": torch.full((3, 4), 1e-200, dtype=torch.float64), "other.bias": torch.ones(3)}
    result, _ = bench.fold(bench.candidate(model), Opcm(variant="paper"))
    assert not result.readouts["tiny.weight"].zero


# ---------------------------------------------------------------------------------------- a read-out that is no slot


@dataclass(frozen=True)
class Extremes(Sum):
    """Keeps two slots of unlike dtypes, one of them no larger than a number."""

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        return {"squares": SlotSpec(w.shape, "F64"), "count": SlotSpec(())}

    def rowwise(self, w: Weight) -> bool:
        return False

    def term(self, u: Update, w: Weight) -> Slots:
        return {"squares": u.delta.double() ** 2, "count": torch.ones(())}


@dataclass(frozen=True)
class RootMeanSquare(ReadOut):
    """Reads the sign of the sum times the root mean square: computed, never kept."""

    by_rows: bool = False

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        return (TaskSum(),) if self.by_rows else (TaskSum(), Extremes())

    def rowwise(self, w: Weight) -> bool:
        return self.by_rows

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        total = kept[TaskSum()]["sum"]
        if self.by_rows:
            return total.abs().sqrt() / counts.folded
        squares, count = kept[Extremes()]["squares"], kept[Extremes()]["count"]
        assert int(count) == counts.folded
        return total.sign() * (squares / count).sqrt().float()

    def scale(self, totals: Totals) -> float:
        return 0.5 / totals.readout_norm


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("memory", [MUCH, LITTLE])
def test_a_readout_that_is_no_slot_is_spilled_and_published(tmp_path: Path, by_rows: bool, memory: int) -> None:
    base, rule = tall_base(), RootMeanSquare(by_rows)
    bench = bench_of(tmp_path, base)
    models = [fine_tuned(base, seed) for seed in (1, 2, 3)]
    for model in models:
        result, draft = bench.fold(bench.candidate(model), rule, memory)
        bench.go_on(result, draft)
    taus = [task_vector(model, base) for model in models]
    expected = {}
    for name in taus[0]:
        each = torch.stack([tau[name] for tau in taus])
        rms = each.sum(0).sign() * (each**2).mean(0).sqrt()
        expected[name] = each.sum(0).abs().sqrt() / 3 if by_rows else rms
    norm = sum(float(tensor.norm()) ** 2 for tensor in expected.values()) ** 0.5
    assert result.totals.readout_norm == pytest.approx(norm, rel=1e-5)
    published = bench.published(result, draft, rule, memory)
    found = task_vector(published, base)
    errors = weight_errors(found, {name: 0.5 / norm * tensor for name, tensor in expected.items()})
    assert max(errors.values()) < 1e-4, errors
    assert torch.equal(published["position_ids"], base["position_ids"])
    spilled = {file.name for file in draft.folder.rglob("*.safetensors")} - {file.name for file in result.files}
    assert spilled - {"model.safetensors"}  # it lies in the draft, which is dropped


def test_a_slot_that_is_read_out_is_not_written_twice(bench: Bench) -> None:
    result, draft = bench.fold(bench.candidate(fine_tuned(tiny_base(), 1)), Opcm())
    assert {file.name for file in draft.folder.rglob("*.safetensors")} == {file.name for file in result.files}


# ------------------------------------------------------------------------------------- what changes while it is folded


class AfterWeights(Progress):
    """Does something to the candidate, or to the fold, after so many weights."""

    def __init__(self, weights: int, act: Callable[[], object]) -> None:
        super().__init__()
        self._weights, self._act = weights, act

    def next_weight(self) -> None:
        super().next_weight()
        if self.weights == self._weights:
            self._act()


def spoil(path: Path, how: str) -> None:
    """Change a file in one of the ways in which files change."""
    data = path.read_bytes()
    match how:
        case "truncated":
            os.truncate(path, len(data) // 2)
        case "emptied":
            os.truncate(path, 0)
        case "overwritten in place":
            with path.open("r+b") as file:
                file.seek(len(data) - 8)
                file.write(bytes(8))
        case "replaced":
            path.with_name("aside").write_bytes(data)
            path.with_name("aside").rename(path)
        case "deleted":
            path.unlink()
        case "appended to":
            with path.open("ab") as file:
                file.write(b"more")
        case "its folder renamed":
            path.parent.rename(path.parent.with_name("elsewhere"))
        case _:
            raise AssertionError(how)


WAYS = ("truncated", "emptied", "overwritten in place", "replaced", "deleted", "appended to", "its folder renamed")


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("weights", [0, 1, 3, 5])
def test_a_candidate_that_changes_is_never_folded(bench: Bench, how: str, weights: int) -> None:
    candidate = bench.candidate(fine_tuned(tiny_base(), 1))
    path = Path(candidate.contents.layout.files[0])
    if weights == 0:
        spoil(path, how)  # whole again, perhaps: then only its stamp tells
    progress = AfterWeights(weights, lambda: spoil(path, how))
    with pytest.raises((Busy, Refused)) as raised:
        bench.fold(candidate, Opcm(), progress=progress)
    assert isinstance(raised.value, Busy) or how == "appended to"


def test_a_candidate_that_goes_just_when_its_fold_begins_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = bench.candidate(fine_tuned(tiny_base(), 1))

    def after_it_went(place: Path) -> Contents:
        shutil.rmtree(candidate.place, ignore_errors=True)
        return read_contents(place)

    monkeypatch.setattr("mergd.daemon.folding.read_contents", after_it_went)
    with pytest.raises(Busy):
        bench.fold(candidate, Opcm())


@pytest.mark.parametrize("how", ["truncated", "overwritten in place", "replaced", "deleted"])
def test_a_candidate_that_changes_has_no_digest(bench: Bench, how: str) -> None:
    candidate = bench.candidate(fine_tuned(tiny_base(), 1))
    path = Path(candidate.contents.layout.files[0])
    with pytest.raises(Busy):
        content_digest(candidate, MUCH, AfterWeights(2, lambda: spoil(path, how)))


def test_what_changed_between_its_sighting_and_its_opening_is_looked_at_again(bench: Bench) -> None:
    candidate = bench.candidate(fine_tuned(tiny_base(), 1))
    spoil(Path(candidate.contents.layout.files[0]), "overwritten in place")
    with pytest.raises(Busy, match="before it was folded"):
        bench.fold(candidate, Opcm())
    with pytest.raises(Busy):
        content_digest(candidate, MUCH, Progress())
    bench.fold(bench.admitted(Path(candidate.place)), Opcm())


def test_a_candidate_hammered_by_another_thread_is_folded_right_or_not_at_all(bench: Bench) -> None:
    model, other = fine_tuned(tiny_base(), 1), fine_tuned(tiny_base(), 2)
    candidate = bench.candidate(model)
    path = Path(candidate.contents.layout.files[0])
    good = path.read_bytes()
    bad = Path(save_model(bench.root / "other", other) / "model.safetensors").read_bytes()
    twin = bench.admitted(bench.root / "other")
    expected = [content_digest(either, MUCH, Progress()) for either in (candidate, twin)]
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            for data in (bad[: len(bad) // 2], bad, good):
                path.write_bytes(data)

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        for _ in range(40):
            try:
                result, _ = bench.fold(bench.admitted(path.parent), Opcm())
            except (Busy, Refused, AssertionError):
                continue
            assert result.digest in expected
    finally:
        stop.set()
        thread.join()


# ----------------------------------------------------------------------------------------------------- the way out


@pytest.mark.parametrize("weights", [1, 4])
def test_a_fold_is_abandoned_on_request(bench: Bench, weights: int) -> None:
    progress = AfterWeights(weights, lambda: progress.abandon.set())
    with pytest.raises(Abandoned):
        bench.fold(bench.candidate(fine_tuned(tiny_base(), 1)), Opcm(), progress=progress)


def test_publishing_and_reading_the_base_are_abandoned_too(bench: Bench) -> None:
    candidate = bench.candidate(fine_tuned(tiny_base(), 1))
    result, draft = bench.fold(candidate, Opcm())
    stopped = Progress()
    stopped.abandon.set()
    with pytest.raises(Abandoned):
        publish(bench.base, result.readouts, 1.0, draft, settings(MUCH), stopped, Linking(Store(bench.root), None))
    with pytest.raises(Abandoned):
        examine_base(bench.root / "base", stopped)
    with pytest.raises(Abandoned):
        content_digest(candidate, MUCH, stopped)


def test_an_error_of_a_rule_leaves_no_file_open(bench: Bench) -> None:
    class Broken(Opcm):
        def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
            raise ArithmeticError(w.name)

    with pytest.raises(ArithmeticError):
        bench.fold(bench.candidate(fine_tuned(tiny_base(), 1)), Broken())


def test_progress_counts_weights_and_bytes(bench: Bench) -> None:
    progress = Progress()
    bench.fold(bench.candidate(fine_tuned(tiny_base(), 1)), Opcm(), LITTLE, progress)
    assert progress.weights == progress.all_weights == 5
    assert progress.nbytes == sum(t.numel() * 4 for t in tiny_base().values() if t.is_floating_point())


# ------------------------------------------------------------------------------------------------------------- ties


def test_a_tied_pair_that_differs_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    base = tiny_base() | {"lm_head.weight": tiny_base()["embed_tokens.weight"].clone()}
    bench = bench_of(tmp_path, base, CONFIG | {"tie_word_embeddings": True})
    assert bench.base.tied == {"lm_head.weight": "embed_tokens.weight"}
    with pytest.raises(Refused, match=r"untied: found lm_head\.weight differs") as raised:
        bench.fold(bench.candidate(fine_tuned(base, 1)), Opcm())
    assert raised.value.reasons[0].code == "untied"


def test_a_tied_pair_in_two_dtypes_is_not_told_apart_by_bytes_alone(tmp_path: Path) -> None:
    base = tiny_base() | {"lm_head.weight": tiny_base()["embed_tokens.weight"].clone()}
    bench = bench_of(tmp_path, base, CONFIG | {"tie_word_embeddings": True})
    model = fine_tuned(base, 1)
    model["lm_head.weight"] = model["embed_tokens.weight"].double()
    with pytest.raises(Refused):  # as numbers they are one, but nobody writes that: it is said, not guessed
        bench.fold(bench.candidate(model), Opcm())


def test_a_folded_value_may_share_nothing_with_what_was_kept() -> None:
    kept = {"sum": torch.ones(3)}
    folded: Folded = TaskSum().fold(kept, Update(torch.ones(3)), Weight("w", (3,), "other"), Counts(1, 1.0), {})
    folded.slots["sum"].zero_()
    assert torch.equal(kept["sum"], torch.ones(3))
