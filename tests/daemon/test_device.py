"""The device: what the setting means, and that a fold on one writes what a fold on the processor does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import drop_adapter, fine_tuned, tiny_base, weight_errors
from torch import Tensor

from mergd.daemon import device
from mergd.daemon.device import Home, resolve, send
from mergd.daemon.opening import open_merge
from mergd.daemon.progress import Progress
from mergd.plugins.rules.interface import LowRank
from mergd.state.errors import Misconfigured
from mergd.state.history import History

RULES = [
    {"rule": "opcm"},
    {"rule": "opcm", "parameters": {"variant": "orthogonal"}},
    {"rule": "ties"},
    {"rule": "average", "also_keep": ["iso_c"]},
    {"rule": "dare"},
]


def gpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


@pytest.mark.parametrize(
    ("said", "number", "meant"),
    [
        ("cpu", 2, "cpu"),
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
        ("cuda:2", 2, "2 GPUs"),
        ("cuda", 0, "no GPU"),
    ],
)
def test_what_the_setting_means(monkeypatch: pytest.MonkeyPatch, said: str, number: int, meant: str) -> None:
    gpus(monkeypatch, number)
    if meant.startswith("c"):
        assert resolve(said) == meant
        return
    with pytest.raises(Misconfigured, match=meant):
        resolve(said)


def folded(root: Path, settings: dict[str, Any]) -> Sandbox:
    """Fold two full checkpoints and an adapter."""
    merge = make_merge(root, limits=NO_LIMITS, **settings)
    for seed in (1, 2):
        merge.drop(f"seed-{seed}", fine_tuned(tiny_base(), seed))
        merge.fold_all()
    if settings["rule"] != "dare":
        drop_adapter(merge.watch / "adapter")
        merge.fold_all()
    return merge


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the device be another one, of this processor's: what is sent there and brought back are other tensors."""
    sent: list[int] = []

    def pin_memory(x: Tensor) -> Tensor:
        sent.append(x.numel())
        return x.clone()

    real: Callable[..., Tensor] = Tensor.to
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "cpu", lambda x: x.clone())
    monkeypatch.setattr(Tensor, "to", lambda x, *a, **k: x if a == ("elsewhere",) else real(x, *a, **k))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "Stream", lambda where: None)
    for module in ("blocks", "opening", "preparing"):
        monkeypatch.setattr(f"mergd.daemon.{module}.resolve", lambda said: "elsewhere")
    return sent


@pytest.mark.parametrize("settings", RULES, ids=str)
def test_what_is_folded_elsewhere_comes_home_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    here = folded(tmp_path / "here", settings)
    sent = elsewhere(monkeypatch)
    there = folded(tmp_path / "there", settings)
    assert sent
    assert [v.digest for v in here.versions()] == [v.digest for v in there.versions()]


def test_one_tensor_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(monkeypatch)
    home, x, factors = Home("elsewhere"), send(torch.ones(3), "elsewhere"), LowRank.zero((3, 2))
    assert home.bring(x) is home.bring(x)
    assert home.bring(x) is not x
    assert home.bring(factors) is home.bring_slots({"slot": factors})["slot"]
    assert device.Home("cpu").bring(x) is x


def test_a_state_keeps_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = make_merge(tmp_path, device="auto")
    gpus(monkeypatch, 1)
    with History(merge.store.database) as history, pytest.raises(Misconfigured, match="made with 'cpu'"):
        open_merge(merge.settings, history, Progress())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("settings", RULES, ids=str)
def test_what_a_gpu_folds_is_what_the_processor_does(tmp_path: Path, settings: dict[str, Any]) -> None:
    here = folded(tmp_path / "here", settings | {"device": "cpu"})
    there = folded(tmp_path / "there", settings | {"device": "cuda"})
    for version in range(1, len(here.versions()) + 1):
        errors = weight_errors(there.published(version), here.published(version))
        assert max(errors.values()) < 1e-5
