"""For each setting, something that one can observe and that changes with it."""

import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from settings import of_observing, of_the_hooks, of_the_hub
from support.commands import eventually
from support.gates import drop as drop_scoring
from support.gates import gated, write_gate
from support.merges import NO_LIMITS, Sandbox, make_merge, set_in
from support.models import CONFIG, Model, drop_adapter, fine_tuned, load_model, norm, save_model, task_vector, tiny_base

from mergd.daemon.settings import keys
from mergd.state.archive import Archive
from mergd.state.errors import Misconfigured
from mergd.state.history import History
from mergd.state.reading import Reader

pytestmark = pytest.mark.long

SHORT = 1.0  # seconds in which something must not happen that otherwise happens at once


class Bench:
    """Makes merges side by side, each in a folder of its own."""

    def __init__(self, root: Path, news: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.news, self.monkeypatch = root, news, monkeypatch
        self._made = 0

    def place(self) -> Path:
        """Return a new folder."""
        self._made += 1
        place = self.root / str(self._made)
        place.mkdir()
        return place

    def merge(self, drops: Sequence[int] = (), **settings: Any) -> Sandbox:
        """Return a merge of the tiny base with these settings, after fine-tunes with these seeds were folded."""
        merge = make_merge(self.place(), **settings)
        for seed in drops:
            merge.drop(f"seed-{seed}", seed)
        merge.fold_all()
        return merge


@pytest.fixture
def bench(tmp_path: Path, their_news: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, their_news, monkeypatch)


def matrix(merge: Sandbox) -> torch.Tensor:
    """Return one published weight."""
    return merge.published()["layer.matrix.weight"]


# ------------------------------------------------------------------------------------------------------ what is pinned


def base_model(bench: Bench) -> None:
    one, other = (
        make_merge(bench.place(), tiny_base(seed), rule="task_arithmetic", limits=NO_LIMITS) for seed in (0, 1)
    )
    for merge in (one, other):
        merge.drop("a", fine_tuned(tiny_base(0), 5))
        merge.fold_all()
    assert not torch.equal(matrix(one), matrix(other))  # the same checkpoint, added to another base model


def source(bench: Bench) -> None:
    found = []
    for name in ("directory", "their_source"):
        merge = make_merge(bench.place(), source=name)
        (merge.watch / "team").mkdir()
        merge.drop("team/a", 1)
        merge.fold_all()
        found.append([Path(row.place).relative_to(merge.watch) for row in merge.checkpoints() if row.state == "folded"])
    assert found == [[], [Path("team/a")]]


def rule(bench: Bench) -> None:
    merges = [bench.merge([1, 2], rule=name) for name in ("opcm", "average", "task_arithmetic")]
    assert [merge.versions()[-1].rule for merge in merges] == ["opcm", "average", "task_arithmetic"]
    assert len({matrix(merge).numpy().tobytes() for merge in merges}) == 3


def parameters(bench: Bench) -> None:
    narrow, wide = (bench.merge([1, 2], parameters={"alpha": alpha}) for alpha in (0.1, 0.9))
    assert not torch.equal(matrix(narrow), matrix(wide))


def scale(bench: Bench) -> None:
    mean_norm, own, half = (bench.merge([1, 2], rule="average", scale=how) for how in ("mean-norm", "rule", 0.25))
    assert len({merge.versions()[-1].scale for merge in (mean_norm, own, half)}) == 3
    assert half.versions()[-1].scale == 0.25
    assert norm(task_vector(mean_norm.published(), mean_norm.model)) == pytest.approx(
        mean_norm.versions()[-1].totals.mean_norm, rel=1e-5
    )


def lines_alpha(bench: Bench) -> None:
    whole, half = (bench.merge([1], lines={"alpha": alpha}) for alpha in (1.0, 0.5))
    taus = [task_vector(merge.published(), merge.model)["layer.matrix.weight"] for merge in (whole, half)]
    torch.testing.assert_close(taus[0], taus[1], atol=1e-6, rtol=1e-5)  # OPCM's scale brings it back
    whole, half = (bench.merge([1], rule="average", lines={"alpha": alpha}) for alpha in (1.0, 0.5))
    taus = [task_vector(merge.published(), merge.model)["layer.matrix.weight"] for merge in (whole, half)]
    torch.testing.assert_close(taus[0], 2 * taus[1], atol=1e-6, rtol=1e-5)


def lines_beta(bench: Bench) -> None:
    base = {f"layers.{i}.weight": torch.zeros(4, 4) for i in range(3)} | {"lm_head.weight": torch.zeros(5, 4)}
    merge = make_merge(bench.place(), base, rule="average", lines={"beta": 1.0}, limits=NO_LIMITS)
    merge.drop("a", {name: torch.ones_like(tensor) for name, tensor in base.items()})
    merge.fold_all()
    found = {name: float(tensor.mean()) for name, tensor in merge.published().items()}
    assert found == {"layers.0.weight": 1.0, "layers.1.weight": 1.5, "layers.2.weight": 2.0, "lm_head.weight": 2.0}


def normalise(bench: Bench) -> None:
    base, found = tiny_base(), []
    for how in (False, True):
        merge = make_merge(bench.place(), base, rule="average", normalise=how, limits=NO_LIMITS)
        models = [fine_tuned(base, 1, 0.1), fine_tuned(base, 2, 10.0)]
        for name, model in zip("ab", models, strict=True):
            merge.drop(name, model)
        merge.fold_all()
        found.append(task_vector(merge.published(), base))
    taus = [task_vector(model, base) for model in models]
    units = [{name: tensor / norm(tau) for name, tensor in tau.items()} for tau in taus]
    mean = sum(norm(tau) for tau in taus) / 2
    for name in base.keys() & taus[0].keys():
        torch.testing.assert_close(found[0][name], (taus[0][name] + taus[1][name]) / 2, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[1][name], mean * (units[0][name] + units[1][name]) / 2, atol=1e-4, rtol=1e-4)


def also_keep(bench: Bench) -> None:
    alone, more = (bench.merge([1], also_keep=names) for names in ((), ("task_arithmetic",)))
    sums = [[key for key in merge.store.slot_layouts(1) if key[0] == "TaskSum()"] for merge in (alone, more)]
    layouts = [merge.store.slot_layouts(1)[keys[0]] for merge, keys in zip((alone, more), sums, strict=True)]
    assert ["layer.matrix.weight" in layout.tensors for layout in layouts] == [False, True]
    assert torch.equal(matrix(alone), matrix(more))


def out_dtype(bench: Bench) -> None:
    for name, dtype in (("base", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        assert matrix(bench.merge([1], out_dtype=name)).dtype == dtype


def convolutions(bench: Bench) -> None:
    base = tiny_base() | {"conv.weight": torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(9))}
    found = []
    for how in ("sum", "project"):
        merge = make_merge(bench.place(), base, convolutions=how)
        for seed in (1, 2):
            merge.drop(f"seed-{seed}", fine_tuned(base, seed))
        merge.fold_all()
        found.append(merge.published()["conv.weight"])
    assert not torch.equal(*found)


def device(bench: Bench) -> None:
    assert bench.merge([1], device="auto" if not torch.cuda.is_available() else "cpu").versions()
    bench.monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Misconfigured, match="no GPU"):
        bench.merge([1], device="cuda")


def threads(bench: Bench) -> None:
    asked_for: list[int] = []

    class Watched(ThreadPoolExecutor):
        def __init__(self, threads: int, *arguments: Any) -> None:
            asked_for.append(threads)
            super().__init__(threads, *arguments)

    bench.monkeypatch.setattr("mergd.daemon.overlapping.ThreadPoolExecutor", Watched)
    for number in (1, 3):
        bench.merge([1], threads=number)
        assert set(asked_for) == {number}
        asked_for.clear()


# -------------------------------------------------------------------------------------------------- what is admitted


def admitted(bench: Bench, model: Model, **settings: Any) -> Sandbox:
    """Return a merge that was given one checkpoint."""
    merge = make_merge(bench.place(), **settings)
    merge.drop("a", model)
    merge.fold_all()
    return merge


def missing(bench: Bench) -> None:
    part = {name: tensor for name, tensor in fine_tuned(tiny_base(), 1).items() if name != "layer.tall.weight"}
    assert admitted(bench, part).states() == {"a": "refused"}
    merge = admitted(bench, part, missing="zero-delta")
    assert merge.states() == {"a": "folded"}
    assert torch.equal(merge.published()["layer.tall.weight"], tiny_base()["layer.tall.weight"])


def extra(bench: Bench) -> None:
    more = fine_tuned(tiny_base(), 1) | {"classifier.weight": torch.ones(2, 6)}
    assert admitted(bench, more).states() == {"a": "refused"}
    merge = admitted(bench, more, extra="ignore")
    assert merge.states() == {"a": "folded"}
    assert "classifier.weight" not in merge.published()


def skip(bench: Bench) -> None:
    more = fine_tuned(tiny_base(), 1) | {"classifier.weight": torch.ones(2, 6)}
    assert admitted(bench, more, skip=("embed*",)).states() == {"a": "refused"}
    merge = admitted(bench, more, skip=("classifier.*", "layer.tall.*"))
    assert merge.states() == {"a": "folded"}
    assert torch.equal(merge.published()["layer.tall.weight"], tiny_base()["layer.tall.weight"])
    assert not torch.equal(matrix(merge), tiny_base()["layer.matrix.weight"])


def rename(bench: Bench) -> None:
    named = {f"model.{name}": tensor for name, tensor in fine_tuned(tiny_base(), 1).items()}
    merge = admitted(bench, named)
    (reason,) = (r for r in merge.checkpoints()[0].reasons if r.code == "missing-weights")
    assert r"add to [rename]: '^model\.' = ''" in reason.next_step
    assert admitted(bench, named, rename={r"^model\.": ""}).states() == {"a": "folded"}


def vocabulary(bench: Bench) -> None:
    base = tiny_base()
    more = fine_tuned(base, 1) | {"embed_tokens.weight": torch.ones(13, 6)}
    assert admitted(bench, more).states() == {"a": "refused"}
    for tokens, expected in ((11, 1.0), (3, None)):  # the same numbers for the same tokens, or other ones
        merge = make_merge(
            bench.place(), vocabulary="base-rows", rule="task_arithmetic", parameters={"lambda": 1}, limits=NO_LIMITS
        )
        (merge.base / "vocab.json").write_text(json.dumps({f"t{i}": i for i in range(11)}))
        merge.drop("a", more)
        (merge.watch / "a" / "vocab.json").write_text(
            json.dumps({f"t{i % tokens}{'x' * (i // tokens)}": i for i in range(13)})
        )
        merge.fold_all()
        table = merge.published()["embed_tokens.weight"]
        assert torch.allclose(table, base["embed_tokens.weight"] if expected is None else torch.full((11, 6), expected))


# ------------------------------------------------------------------------------------------------ where, and what then


def watch(bench: Bench) -> None:
    merge = bench.merge()
    elsewhere = save_model(bench.place() / "a", merge.fine_tuned(1)).parent
    merge.drop("b", 2)
    merge.fold_all()
    assert merge.states() == {"b": "folded"}
    set_in(merge.config, watch=json.dumps(str(elsewhere)))
    merge.fold_all()
    assert merge.states() == {"a": "folded", "b": "folded"}


def state(bench: Bench) -> None:
    elsewhere = bench.place() / "here"
    merge = make_merge(bench.place(), state=elsewhere)
    assert (elsewhere / "mergd.db").is_file()
    assert not merge.state.exists()


def existing(bench: Bench) -> None:
    for how, expected in (("hold", "held"), ("fold", "settling"), ("ignore", "refused")):
        root = bench.place()
        save_model(root / "watch" / "a", fine_tuned(tiny_base(), 1))
        assert make_merge(root, existing=how).states() == {"a": expected}


def quiet(bench: Bench) -> None:
    assert bench.merge([1], quiet=0).states() == {"seed-1": "folded"}
    merge = make_merge(bench.place(), quiet=3600)
    merge.drop("a", 1)
    with merge.loop() as loop:
        loop.post("rescan")
        loop.turn()
        said = json.loads((merge.state / "status.json").read_text())
    assert said["waits"] == {"1": "no change for 3600 s"}
    assert merge.states() == {"a": "settling"}


def quiet_unsure(bench: Bench) -> None:
    for seconds, state in ((0, "folded"), (3600, "settling")):
        merge = make_merge(
            bench.place(), {"table.weight": torch.randn(200, 40)}, quiet_unsure=seconds, limits=NO_LIMITS
        )
        make_a_hole(merge.drop("a.safetensors", 1))
        take(merge)
        assert merge.states() == {"a.safetensors": state}


def quiet_network(bench: Bench) -> None:
    merges = {seconds: make_merge(bench.place(), quiet_network=seconds) for seconds in (0, 3600)}
    bench.monkeypatch.setattr("mergd.plugins.sources.directory.evidence.on_network", lambda path: True)
    for seconds, state in ((0, "folded"), (3600, "settling")):
        merges[seconds].drop("a", 1)
        take(merges[seconds])
        assert merges[seconds].states() == {"a": state}


def marked_only(bench: Bench) -> None:
    merge = make_merge(bench.place(), marked_only=True)
    place = merge.drop("a", 1)
    assert merge.mergd("run", "--once").code == 0
    assert merge.states() == {"a": "settling"}
    assert merge.mergd("list", "--json").json[0]["state"] == "settling"
    (place / "READY").touch()
    assert merge.mergd("run", "--once").code == 0
    assert merge.states() == {"a": "folded"}


def on_change(bench: Bench) -> None:
    for how, state, folded in (("hold", "held", 1), ("ignore", "refused", 1), ("add", "folded", 2),
                               ("replace", "folded", 1)):  # fmt: skip
        merge = bench.merge([1], on_change=how)
        save_model(merge.watch / "seed-1", merge.fine_tuned(9))
        assert merge.mergd("run", "--once").code == 0
        assert (merge.checkpoints()[-1].state, merge.versions()[-1].totals.folded) == (state, folded)


def per_run(bench: Bench) -> None:
    for how, folded in (("last", 1), ("each", 2), ("replace", 1)):
        merge = make_merge(bench.place(), per_run=how, run_quiet=0)
        save_run(merge, 500, 1000)
        assert merge.mergd("run", "--once").code == 0
        assert merge.versions()[-1].totals.folded == folded


def run_quiet(bench: Bench) -> None:
    for seconds, state in ((0, "folded"), (3600, "settling")):
        merge = make_merge(bench.place(), run_quiet=seconds)
        save_run(merge, 500)
        assert merge.mergd("run", "--once").code == 0
        assert merge.states() == {"alpha/checkpoint-500": state}


def take(merge: Sandbox) -> None:
    """Let a loop look once at what was dropped, and fold what is ready."""
    with merge.loop() as loop:
        loop.post("rescan")
        loop.run(until=lambda: list(merge.states().values()) in (["settling"], ["folded"]))


def make_a_hole(path: Path) -> None:
    """Leave out the end of a file, and give it its size back."""
    nbytes = path.stat().st_size
    os.truncate(path, nbytes // 2)
    os.truncate(path, nbytes)


def save_run(merge: Sandbox, *steps: int) -> None:
    """Write steps of one training, as a trainer does."""
    for step in steps:
        place = save_model(merge.root / "aside", merge.fine_tuned(step))
        (place / "trainer_state.json").write_text("{}")
        (merge.watch / "alpha").mkdir(exist_ok=True)
        place.rename(merge.watch / "alpha" / f"checkpoint-{step}")


def rescan(bench: Bench) -> None:
    assert not finds_a_drop(bench, SHORT, events=False, rescan=3600)
    assert finds_a_drop(bench, events=False, rescan=0.2)


def events(bench: Bench) -> None:
    assert not finds_a_drop(bench, SHORT, events=False, rescan=3600)
    assert finds_a_drop(bench, events=True, rescan=3600)


def finds_a_drop(bench: Bench, patience: float = 30.0, **settings: Any) -> bool:
    """Whether a daemon that has looked at its folder once takes what is dropped then."""
    merge = make_merge(bench.place())
    set_in(merge.config, **{key: json.dumps(value) for key, value in settings.items()})
    merge.drop("a", 1)
    with merge.running("run"):
        eventually(lambda: merge.states().get("a") == "folded")
        merge.drop("b", 2)
        try:
            return bool(eventually(lambda: "b" in merge.states(), patience))
        except AssertionError:
            return False


# -------------------------------------------------------------------------------------------------- memory and files


def memory(bench: Bench) -> None:
    base = {"table.weight": torch.randn(3000, 40), "embed.weight": torch.randn(3000, 40)}  # half a megabyte each
    assert largest_read(bench, base, memory=3_000_000) < 3_000_000 / 4
    assert largest_read(bench, base, memory=256_000_000) == 3000 * 40 * 4


def largest_read(bench: Bench, base: Model, **settings: Any) -> int:
    """Return the bytes of the largest block that a fold reads."""
    merge = make_merge(bench.place(), base, rule="average", **settings)
    merge.drop("a", 1)
    sizes: list[int] = []
    read = Reader.read

    def noting(reader: Reader, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        block = read(reader, name, rows)
        sizes.append(block.numel() * block.element_size())
        return block

    with bench.monkeypatch.context() as patch:
        patch.setattr(Reader, "read", noting)
        merge.fold_all()
    assert merge.states() == {"a": "folded"}
    return max(sizes)


def shard_size(bench: Bench) -> None:
    whole, cut = bench.merge([1]), bench.merge([1], shard_size=300)
    assert [path.name for path in whole.store.current.glob("*.safetensors")] == ["model.safetensors"]
    assert len(list(cut.store.current.glob("model-*-of-*.safetensors"))) > 2
    assert (cut.store.current / "model.safetensors.index.json").is_file()
    assert torch.equal(matrix(whole), matrix(cut))


def copy_code(bench: Bench) -> None:
    for copied in (False, True):
        root = bench.place()
        save_model(root / "base", tiny_base(), CONFIG | {"auto_map": {"AutoModel": "modeling_made_up.MadeUp"}})
        (root / "base" / "modeling_made_up.py").write_text("raise SystemExit('nobody runs this')\n")
        merge = make_merge(root, copy_code=copied)
        merge.drop("a", 1)
        merge.fold_all()
        config = json.loads((merge.store.current / "config.json").read_text())
        assert ("auto_map" in config) == copied
        assert (merge.store.current / "modeling_made_up.py").exists() == copied


# ---------------------------------------------------------------------------------------------------------- retention


def keep_last(bench: Bench) -> None:
    for number in (2, 4):
        merge = bench.merge([1, 2, 3, 4, 5], keep_last=number, keep_within=0)
        assert [version.number for version in merge.versions() if version.kept] == [1, 2, 3, 4, 5][-number:]
        assert len(list(merge.store.models.glob("0*"))) == number


def keep_within(bench: Bench) -> None:
    for seconds, kept in ((0, [3, 4]), (3600, [1, 2, 3, 4])):
        merge = bench.merge([1, 2, 3, 4], keep_last=1, keep_within=seconds)
        assert [version.number for version in merge.versions() if version.kept] == kept


def spread(bench: Bench, ages: Sequence[float], **settings: Any) -> Sandbox:
    """Return a merge whose versions were made so many days ago, after retention has had its way."""
    merge = bench.merge(range(1, len(ages) + 1), keep_within="1000d")
    with closing(sqlite3.connect(merge.store.database)) as db, db:
        for number, days in enumerate(ages, start=1):
            at = (datetime(2026, 1, 1, 12, tzinfo=UTC) - timedelta(days=days)).isoformat()
            db.execute("update versions set created_at = ? where number = ?", [at, number])
    set_in(merge.config, keep_within="0")
    set_in(merge.config, **{key: str(value) for key, value in settings.items()})
    merge.fold_all()
    return merge


def keep_daily(bench: Bench) -> None:
    for days, kept in ((0, [5, 6]), (3, [2, 4, 5, 6])):
        merge = spread(bench, [9.1, 9, 6.1, 6, 0.1, 0], keep_last=1, keep_daily=days)
        assert [version.number for version in merge.versions() if version.kept] == kept


def keep_weekly(bench: Bench) -> None:
    for weeks, kept in ((0, [5, 6]), (3, [2, 4, 5, 6])):
        merge = spread(bench, [17, 16, 10, 9, 2, 1], keep_last=1, keep_weekly=weeks)
        assert [version.number for version in merge.versions() if version.kept] == kept


def keep_slots(bench: Bench) -> None:
    for number, kept in ((0, [2, 3, 4, 5]), (1, [4, 5]), (3, [3, 4, 5])):
        merge = bench.merge([1, 2, 3, 4, 5], keep_last=4, keep_within=0, keep_slots=number)
        assert [version.number for version in merge.versions() if version.kept] == [2, 3, 4, 5]
        assert [version.number for version in merge.versions() if version.slots_kept] == kept
        assert len(list(merge.store.versions.glob("0*/slots-*"))) % len(kept) == 0
        assert merge.mergd("verify").code == 0


def disk(bench: Bench) -> None:
    merge = bench.merge([1], disk="100GB")
    set_in(merge.config, disk=str(merge.used() + 1000))
    merge.drop("late", 2)
    merge.fold_all()
    assert merge.states()["late"] == "ready"
    set_in(merge.config, disk="0")
    merge.fold_all()
    assert merge.states()["late"] == "folded"


def prepare(bench: Bench) -> None:
    for value in (True, False):
        merge = bench.merge([1], prepare=value)
        with merge.running("run"):
            eventually(partial(prepared_as_set, merge))
            merge.drop("late", 2)
            eventually(merge.store.model(2).exists)
        assert merge.store.prepared.exists() == value


def prepared_as_set(merge: Sandbox) -> bool:
    """Whether something is prepared, where that is to be."""
    return merge.store.prepared.exists() or not merge.settings.prepare


def prepared(bench: Bench) -> None:
    for room, found in (("1MB", 1), ("10", 0)):
        merge = bench.merge([1], prepared=room)
        with merge.loop() as loop:
            loop.prepares = True
            while not loop._preparing._rests_until:
                loop.turn()
        assert len(list(merge.store.prepared.glob("000001/*"))) == found


def scrub(bench: Bench) -> None:
    for period, read in (("1ms", True), (0, False), ("30d", False)):
        merge = bench.merge([1], scrub=period)
        with merge.loop() as loop:
            loop.post("scrub")
            loop.run(until=loop.idle)
        assert [version.checked_at is not None for version in merge.versions()] == [read]


# --------------------------------------------------------------------------------------------------------- limits


def judged(bench: Bench, models: Sequence[Model], **limits: float) -> list[str]:
    """Return what a run says of checkpoints that are dropped one after the other, under these limits alone."""
    merge = make_merge(bench.place(), rule="average", limits=NO_LIMITS | limits)
    for number, model in enumerate(models):
        merge.drop(f"{number:02d}", model)
    assert merge.mergd("run", "--once").code == 0
    rows = sorted(merge.mergd("list", "--json").json, key=lambda row: str(row["name"]))
    return [", ".join(reason["code"] for reason in row["reasons"]) for row in rows]


def away(seed: int, size: float) -> Model:
    """Return a fine-tune of the tiny base, whose task vector has about `size` times its norm."""
    return fine_tuned(tiny_base(), seed, size)


def limits_norm(bench: Bench) -> None:
    assert judged(bench, [away(1, 0.4), away(2, 0.9)], norm=0.5) == ["", "far-from-base"]
    assert judged(bench, [away(1, 0.4), away(2, 0.9)], norm=2) == ["", ""]


def limits_weight_norm(bench: Bench) -> None:
    wild = away(1, 0.1) | {"layer.wide.weight": away(2, 2.0)["layer.wide.weight"]}
    for limit, found in ((1, "far-weight"), (5, "")):
        assert judged(bench, [wild], weight_norm=limit) == [found]


def limits_sigmas(bench: Bench) -> None:
    merge = bench.merge([1, 2, 3, 4, 5], rule="average", limits=NO_LIMITS | {"sigmas": 6})
    merge.drop("wild", away(9, 1.0))
    passes_only_under(merge, "wild", "unusual-norm", sigmas="1000")


def passes_only_under(merge: Sandbox, name: str, code: str, **limit: str) -> None:
    """Assert that a checkpoint is held for a reason, and that it is folded as soon as the configuration says otherwise."""
    assert merge.mergd("fold", merge.watch / name).code == 65
    row = next(row for row in merge.checkpoints() if row.name == name)
    assert (row.state, [reason.code for reason in row.reasons]) == ("held", [code])
    set_in(merge.config, **limit)
    assert merge.mergd("fold", merge.watch / name).code == 0


def limits_cosine(bench: Bench) -> None:
    base, one = tiny_base(), away(1, 0.1)
    back = {
        name: tensor - (one[name] - tensor) if tensor.is_floating_point() else tensor for name, tensor in base.items()
    }
    for limit, found in ((-0.5, "against-merge"), (-1, "")):
        assert judged(bench, [one, back], cosine=limit) == ["", found]


def limits_near_copy(bench: Bench) -> None:
    one = away(1, 0.1)
    again = {name: t + 0.001 * t if t.is_floating_point() else t for name, t in one.items()}
    for limit, found in ((0.99, "near-copy"), (1, "")):
        assert judged(bench, [one, again], near_copy=limit) == ["", found]


def limits_share(bench: Bench) -> None:
    merge = bench.merge([1, 2, 3, 4, 5], limits=NO_LIMITS | {"share": 0.5})
    with History(merge.store.database, write=True) as history:  # only root could give files away
        history._db.execute("update contributions set contributor = 'somebody' where version = 1")
    merge.drop("z", 9)
    passes_only_under(merge, "z", "too-much-of-one", **{"limits.share": "0.95"})


def limits_adapter_rank(bench: Bench) -> None:
    for limit, found in ((3, "wild-adapter"), (4, "")):
        assert judged_adapter(bench, r=4, lora_alpha=4, adapter_rank=limit) == found


def limits_adapter_scale(bench: Bench) -> None:
    for limit, found in ((15, "wild-adapter"), (16, "")):
        assert judged_adapter(bench, r=4, lora_alpha=64, adapter_scale=limit) == found


def judged_adapter(bench: Bench, r: int, lora_alpha: int, **limit: float) -> str:
    """Return the code of what an adapter is held for, with this limit alone."""
    merge = bench.merge(limits=NO_LIMITS | limit)
    drop_adapter(merge.watch / "a", r, lora_alpha)
    return "".join(reason.code for row in merge.fold_all() for reason in row.reasons)


def limits_per_day(bench: Bench) -> None:
    models = [away(seed, 0.1) for seed in range(3)]
    assert judged(bench, models, per_day=2) == ["", "", "too-many"]
    assert judged(bench, models, per_day=3) == ["", "", ""]


def share(bench: Bench) -> None:
    merges = [bench.merge([1], rule="task_arithmetic", share=counts) for counts in (1.0, 2.0)]
    assert [merge.versions()[-1].totals.shares for merge in merges] == [1.0, 2.0]
    assert not torch.equal(*map(matrix, merges))


def trust_sidecar(bench: Bench) -> None:
    assert [counted_with(bench, trust_sidecar=trusted) for trusted in (False, True)] == [1.0, 3.0]


def weight_range(bench: Bench) -> None:
    bounds = ((0.1, 10.0), (0.1, 2.0), (4.0, 5.0))
    assert [counted_with(bench, trust_sidecar=True, weight_range=allowed) for allowed in bounds] == [3.0, 2.0, 4.0]


def counted_with(bench: Bench, **settings: Any) -> float:
    """Return what a checkpoint counts whose sidecar says 3."""
    merge = bench.merge(rule="average", **settings)
    (merge.drop("a", 1) / "checkpoint.toml").write_text("share = 3.0")
    merge.fold_all()
    return merge.versions()[-1].totals.shares


# ------------------------------------------------------------------------------------------------ plugins of others


def gates(bench: Bench) -> None:
    for names, state in (((), "folded"), (("their_gate",), "refused")):
        merge = bench.merge(gates=names)
        merge.drop("unwanted", 1)
        merge.fold_all()
        assert merge.states() == {"unwanted": state}


def hooks(bench: Bench) -> None:
    bench.merge([1, 2])
    assert bench.news.read_text() == ""
    merge = bench.merge([1, 2], hooks=("their_hook",))
    news = [json.loads(line) for line in bench.news.read_text().splitlines()]
    assert [(item["before"], item["version"]) for item in news] == [(None, 1), (1, 2)]
    assert load_model(Path(news[-1]["model"])).keys() == merge.model.keys()


Case = Callable[[Bench], None]


def archive_adapters(bench: Bench) -> None:
    for adapters, found in ((True, 1), (False, 0)):
        merge = bench.merge(archive={"adapters": adapters})
        drop_adapter(merge.watch / "a")
        merge.fold_all()
        assert len(Archive(merge.store).entries()) == found


def archive_full(bench: Bench) -> None:
    for budget, found in ((1_000_000, 1), (0, 0)):
        merge = bench.merge(archive={"full": budget})
        merge.drop("a", 1)
        merge.fold_all()
        assert len(Archive(merge.store).entries()) == found


def with_a_gate(bench: Bench, values: Sequence[float], then: str = "", **table: Any) -> list[str]:
    """Return the codes that checkpoints get whose metric is 1 for the base model and has these values."""
    merge = gated(bench.place(), then, **table)
    for number, value in enumerate(values):
        drop_scoring(merge, f"{number}", value)
    return [", ".join(reason.code for reason in row.reasons) for row in merge.fold_all()]


def gate_NAME_command(bench: Bench) -> None:
    other = write_gate(bench.place() / "other.py", "sys.exit(65)")
    assert with_a_gate(bench, [1.0]) == [""]
    assert with_a_gate(bench, [1.0], **other, mode="enforce") == ["gate-failed"]  # it refuses the base model


def gate_NAME_socket(bench: Bench) -> None:
    assert with_a_gate(bench, [1.0], command=[], socket=str(bench.root / "nobody")) == ["gate-failed"]


def gate_NAME_deadline(bench: Bench) -> None:
    slow = "time.sleep(SLEEP)"
    assert with_a_gate(bench, [1.0], slow.replace("SLEEP", "600"), deadline="200ms") == ["gate-failed"]
    assert with_a_gate(bench, [1.0], slow.replace("SLEEP", "0.3"), deadline="60s") == [""]


def gate_NAME_drop(bench: Bench) -> None:
    for most, code in ((0.1, "metric-drop"), (0.3, "")):
        assert with_a_gate(bench, [0.75], drop=most, total_drop=1) == [code]


def gate_NAME_total_drop(bench: Bench) -> None:
    for most, code in ((0.3, "metric-total-drop"), (0.5, "")):
        assert with_a_gate(bench, [0.75, 0.5], drop=0.25, total_drop=most) == ["", code]


def gate_NAME_mode(bench: Bench) -> None:
    for mode, codes in (("enforce", "metric-drop, metric-total-drop"), ("observe", "")):
        assert with_a_gate(bench, [0.5], mode=mode) == [codes]


TABLES: tuple[Case, ...] = (
    *(limits_norm, limits_weight_norm, limits_sigmas, limits_cosine, limits_near_copy, limits_share),
    *(limits_per_day, limits_adapter_rank, limits_adapter_scale),
    *(archive_adapters, archive_full, lines_alpha, lines_beta),
)
GATES: tuple[Case, ...] = (
    *(gate_NAME_command, gate_NAME_socket, gate_NAME_deadline),
    *(gate_NAME_drop, gate_NAME_total_drop, gate_NAME_mode),
)
OTHERS: tuple[Case, ...] = (
    *(
        base_model,
        source,
        rule,
        parameters,
        scale,
        normalise,
        also_keep,
        out_dtype,
        threads,
        device,
        convolutions,
        watch,
        state,
        existing,
        share,
        trust_sidecar,
        weight_range,
    ),
    *(missing, extra, skip, rename, vocabulary),
    *(quiet, quiet_unsure, quiet_network, marked_only, on_change, per_run, run_quiet, rescan, events, memory),
    *(
        shard_size,
        copy_code,
        keep_last,
        keep_within,
        keep_daily,
        keep_weekly,
        keep_slots,
        disk,
        prepare,
        prepared,
        scrub,
        gates,
        hooks,
    ),
)
CASES = {case.__name__: case for case in OTHERS} | {case.__name__.replace("_", ".", 1): case for case in TABLES}
CASES |= {case.__name__.replace("_", ".", 2): case for case in GATES}
CASES |= {
    name: partial(lambda case, bench: case(bench.place), case)
    for name, case in (of_the_hub.CASES | of_the_hooks.CASES | of_observing.CASES).items()
}


@pytest.mark.parametrize("name", keys())
def test_something_changes_with_every_setting(bench: Bench, name: str) -> None:
    CASES[name](bench)


def test_every_case_is_of_a_setting() -> None:
    assert CASES.keys() == keys().keys()
