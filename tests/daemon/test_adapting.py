"""A version's task vector as one adapter: the real peft library loads it, and merges it to the truncated SVD."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.adapters import Small, gpt2, llama, save_base, weights_of
from support.merges import NO_LIMITS, Sandbox, make_merge, set_in
from support.models import Model, fine_tuned, weight_errors
from torch import Tensor, nn

from mergd.daemon import adapting, factoring
from mergd.daemon.adapting import export_adapter
from mergd.daemon.progress import Progress
from mergd.state.errors import Damaged, Usage
from mergd.state.history import History

pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn of what is meant here

FULL = 1000


class Mixed(Small):
    """Whose table has a name that says what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = self.table
        del self.table


MODELS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {  # and what no plain LoRA holds, besides one dimension
    "llama": (llama, set()),
    "llama, tied": (lambda: llama(tie_word_embeddings=True), {"model.embed_tokens.weight"}),
    "gpt2, stored (in, out), tied": (gpt2, {"transformer.wte.weight"}),
    "gpt2, stored (in, out), with a head": (lambda: gpt2(tie_word_embeddings=False), set()),
    "convolutions, a table, no config": (Mixed, {"conv.weight", "point.weight"}),
}


def folded(root: Path, base: nn.Module, *models: Model, **settings: Any) -> Sandbox:
    """Fold fine-tunes of a base model one after the other."""
    save_base(root / "base", base)
    merge = make_merge(root, weights_of(base), limits=NO_LIMITS, **settings)
    for k, model in enumerate(models or (fine_tuned(weights_of(base), 1), fine_tuned(weights_of(base), 2))):
        merge.drop(f"c{k}", model)
        merge.fold_all()
    assert set(merge.states().values()) == {"folded"}, [row.reasons for row in merge.checkpoints()]
    return merge


def adapter_of(merge: Sandbox, rank: int, version: str = "head") -> tuple[Path, dict[str, Any]]:
    """Export an adapter; returns its folder and what was said."""
    place = merge.root / f"adapter-{rank}-{version}"
    return place, export_adapter(merge.settings, version, place, rank, Progress())


def merged_by_peft(base: nn.Module, adapter: Path) -> Model:
    """Return the weights that peft merges the adapter to, computed in float64."""
    model = PeftModel.from_pretrained(copy.deepcopy(base).double(), str(adapter), autocast_adapter_dtype=False)
    return weights_of(model.merge_and_unload())


def deltas(merge: Sandbox) -> Model:
    """Return published minus base, float64: what the head's task vector is."""
    return {name: tensor.double() - merge.model[name].double() for name, tensor in merge.published().items()}


def truncated(delta: Tensor, rank: int) -> Tensor:
    """Return the best approximation of a rank."""
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    best: Tensor = U[:, :rank] @ torch.diag(S[:rank]) @ Vh[:rank]
    return best


def fits(name: str, delta: Tensor, left_out: set[str]) -> bool:
    return delta.ndim == 2 and name not in left_out


@pytest.mark.parametrize("name", MODELS)
def test_at_full_rank_peft_merges_it_to_what_was_published(tmp_path: Path, name: str) -> None:
    make, left_out = MODELS[name]
    base = make()
    merge = folded(tmp_path, base)
    place, said = adapter_of(merge, FULL)
    found, delta = merged_by_peft(base, place), deltas(merge)
    expected = {
        key: merge.published()[key] if fits(key, delta[key], left_out) else tensor
        for key, tensor in weights_of(base).items()
    }
    assert max(weight_errors(found, expected).values()) < 1e-5
    assert said["kept_of_matrices"] == pytest.approx(1.0)
    assert sorted(os.listdir(place)) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_of_a_lower_rank_it_is_the_truncated_svd(tmp_path: Path, name: str, rank: int) -> None:
    make, left_out = MODELS[name]
    base = make()
    merge = folded(tmp_path, base)
    place, said = adapter_of(merge, rank)
    found, delta = merged_by_peft(base, place), deltas(merge)
    inside = {key: truncated(tensor, rank) for key, tensor in delta.items() if fits(key, tensor, left_out)}
    before = {key: tensor.double() for key, tensor in weights_of(base).items()}
    errors = weight_errors({key: found[key] - before[key] for key in inside}, inside)
    assert max(errors.values()) < 1e-5
    assert all(torch.equal(found[key], before[key]) for key in before if key not in inside)

    whole = sum(float(tensor.square().sum()) for tensor in delta.values())
    matrices = sum(float(delta[key].square().sum()) for key in inside)
    kept = sum(float(tensor.square().sum()) for tensor in inside.values())
    assert (said["kept"], said["kept_of_matrices"]) == pytest.approx((kept / whole, kept / matrices))
    assert sum(left["share"] for left in said["left_out"].values()) == pytest.approx(1 - matrices / whole)
    assert said["matrices"] == len(inside)
    names = [key for key in delta if key not in inside and bool(delta[key].any())]
    assert sum(left["weights"] for left in said["left_out"].values()) == len(names)


@pytest.mark.parametrize("name", ["llama", "gpt2, stored (in, out), tied"])
def test_a_model_that_carries_it_unmerged_computes_the_same(tmp_path: Path, name: str) -> None:
    base = MODELS[name][0]().eval()
    merge = folded(tmp_path, base)
    place, _ = adapter_of(merge, 2)
    model = PeftModel.from_pretrained(copy.deepcopy(base), str(place)).eval()
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        unmerged, plain = model(tokens).logits, base(tokens).logits
        merged = model.merge_and_unload()(tokens).logits
    assert float((unmerged - merged).abs().max()) < 1e-4
    assert float((unmerged - plain).abs().max()) > 1e-2


def test_only_what_differs_from_the_base_is_adapted(tmp_path: Path) -> None:
    base = llama()
    weights = weights_of(base)
    changed = "model.layers.0.self_attn.q_proj.weight"
    model = weights | {changed: weights[changed] + 0.1}
    merge = folded(tmp_path, base, model)
    place, said = adapter_of(merge, 8)
    config = json.loads((place / "adapter_config.json").read_text())
    assert config["target_modules"] == [changed.removesuffix(".weight")]
    assert (said["matrices"], said["left_out"], said["kept"]) == (1, {}, pytest.approx(1.0))
    assert max(weight_errors(merged_by_peft(base, place), model).values()) < 1e-6  # a constant has rank 1


def test_where_no_matrix_differs_there_is_no_adapter(tmp_path: Path) -> None:
    base = llama()
    weights = weights_of(base)
    merge = folded(tmp_path, base, weights | {"model.norm.weight": weights["model.norm.weight"] + 1})
    with pytest.raises(Usage, match="no matrix of v1"):
        adapter_of(merge, 8)
    assert not [path for path in merge.root.iterdir() if "adapter" in path.name]


@pytest.mark.parametrize(
    ("rule", "parameters"),
    [
        ("average", {}),
        ("task_arithmetic", {"lambda": 0.3}),
        *(("opcm", {"variant": variant}) for variant in ("block", "block_diagonal", "paper")),
    ],
)
@pytest.mark.parametrize("memory", [1 << 30, 1_000_000])
def test_every_rule_in_blocks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, parameters: dict[str, Any], memory: int
) -> None:
    monkeypatch.setattr(factoring, "CHUNK_ROWS", 1000)
    base = llama(vocab_size=5000)  # 640 kB; a block may have 83
    merge = folded(tmp_path, base, rule=rule, parameters=parameters)
    set_in(merge.config, memory=str(memory))
    place, _ = adapter_of(merge, FULL, "v2")
    found, published = merged_by_peft(base, place), merge.published(2)
    matrices = [name for name, tensor in published.items() if tensor.ndim == 2]
    errors = weight_errors({n: found[n] for n in matrices}, {n: published[n] for n in matrices})
    assert max(errors.values()) < 1e-5


def test_of_a_version_without_slots_it_is_published_minus_base(tmp_path: Path) -> None:
    base = gpt2()
    merge = folded(tmp_path, base)
    with_slots = merged_by_peft(base, adapter_of(merge, 3, "v1")[0])
    with History(merge.store.database, write=True) as history:
        history._db.table("versions").update(1, {"slots_kept": 0})
    for path in (merge.store.versions / "000001").glob("slots-*"):
        path.unlink()
    (merge.root / "adapter-3-v1").rename(merge.root / "before")
    without = merged_by_peft(base, adapter_of(merge, 3, "v1")[0])
    assert max(weight_errors(without, with_slots).values()) < 1e-5


@pytest.mark.parametrize("slots", [True, False])
def test_damaged_files_are_no_source_of_an_adapter(tmp_path: Path, slots: bool) -> None:
    merge = folded(tmp_path, llama())
    path = next((merge.store.versions / "000002").glob("slots-*"))
    if not slots:
        with History(merge.store.database, write=True) as history:
            history._db.table("versions").update(2, {"slots_kept": 0})
        path = merge.store.model(2) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    before = os.listdir(merge.root)
    with pytest.raises(Damaged, match="not as it was written"):
        adapter_of(merge, 3)
    assert os.listdir(merge.root) == before


@pytest.mark.parametrize("step", ["factors", "write_file"])
def test_whatever_ends_it_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*arguments: Any) -> None:
        raise KeyboardInterrupt

    merge = folded(tmp_path, llama())
    before = os.listdir(merge.root)
    monkeypatch.setattr(adapting, step, fail)
    with pytest.raises(KeyboardInterrupt):
        adapter_of(merge, 3)
    assert os.listdir(merge.root) == before


@pytest.mark.parametrize("name", ["llama", "gpt2, stored (in, out), tied"])
def test_mergd_folds_it_like_any_adapter(tmp_path: Path, name: str) -> None:
    base = MODELS[name][0]()
    merge = folded(tmp_path / "first", base)
    place, _ = adapter_of(merge, 4)
    theirs = merged_by_peft(base, place)
    save_base(tmp_path / "second" / "base", base)
    parameters = {"lambda": 1.0}
    second = make_merge(
        tmp_path / "second", weights_of(base), limits=NO_LIMITS, rule="task_arithmetic", parameters=parameters
    )
    place.rename(second.watch / "adapter")
    second.fold_all()
    assert second.states() == {"adapter": "folded"}
    assert max(weight_errors(second.published(), theirs).values()) < 1e-6


def test_a_leading_direction_of_many_rows_is_found_to_the_last_digits() -> None:
    torch.manual_seed(0)
    D = torch.randn(300, 40, dtype=torch.float64) @ torch.diag(torch.logspace(0, -12, 40, dtype=torch.float64))
    long, Q = factoring.leading(lambda: torch.split(D, 64), 40, 5)
    assert float((long @ Q.T - truncated(D, 5)).norm() / D.norm()) < 1e-8
    assert float((Q.T @ Q - torch.eye(5)).abs().max()) < 1e-12


@pytest.mark.parametrize(
    "spectrum",
    [torch.ones(600), torch.logspace(0, -3, 600), torch.linspace(1, 0.5, 600), (torch.arange(600) < 5).float()],
    ids=["flat", "steep", "gentle", "of rank 5"],
)
def test_few_directions_of_a_large_matrix_keep_as_much_as_any_could(spectrum: Tensor) -> None:
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(600, 600, dtype=torch.float64))[0] for _ in range(2))
    D = U @ torch.diag(spectrum.double()) @ V.T
    long, Q = factoring.leading(lambda: torch.split(D, 256), 600, 8)
    assert float(long.square().sum()) == pytest.approx(float(spectrum[:8].double().square().sum()), rel=1e-9)
    assert float((Q.T @ Q - torch.eye(8)).abs().max()) < 1e-12
    assert float((D @ Q - long).abs().max()) < 1e-12


def test_the_iteration_finds_what_the_whole_decomposition_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    D = torch.randn(700, 600, dtype=torch.float64)  # its spectrum is flat, as of noise
    found, Q = factoring.leading(lambda: [D], 600, 6)
    whole: list[int] = []
    real = torch.linalg.eigh

    def noted(G: Tensor) -> Any:
        whole.append(len(G))
        return real(G)

    monkeypatch.setattr(torch.linalg, "eigh", noted)
    again, _ = factoring.leading(lambda: [D], 600, 6)
    assert torch.equal(found, again)
    assert max(whole) < 600  # nothing was decomposed whole
    assert float((found @ Q.T - truncated(D, 6)).norm() / D.norm()) < 1e-6
