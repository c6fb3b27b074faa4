"""What the next fold needs is prepared while the daemon has nothing else to do, and changes no byte, whatever becomes of it."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import eventually
from support.merges import NO_LIMITS, Sandbox, make_merge, set_in
from support.models import Model, fine_tuned, tiny_base

from mergd.daemon.loop import Loop
from mergd.daemon.requests import Pause, Rollback
from mergd.plugins.rules.interface import Slots
from mergd.plugins.rules.opcm import Accumulator
from mergd.state.prepared import Prepared
from mergd.state.records import Weight
from mergd.state.store import Store

RULES: list[dict[str, Any]] = [
    *({"parameters": {"variant": variant}} for variant in ("block", "orthogonal", "block_diagonal", "paper")),
    {"rule": "null_filter", "parameters": {"rank": 2}, "memory": "8MB"},
    {"rule": "average", "also_keep": ["null_filter"], "memory": "8MB"},
]


def base() -> Model:
    """Return a model of which a fold takes the experts in blocks, where memory is little."""
    generator = torch.Generator().manual_seed(5)
    return tiny_base() | {"experts.up_proj": torch.randn(12, 48, 56, generator=generator)}


def new(place: Path, model: Model | None = None, **settings: Any) -> Sandbox:
    """Make a merge whose experts go by in blocks."""
    return make_merge(place, base() if model is None else model, limits=NO_LIMITS, **({"memory": "1MB"} | settings))


def status(merge: Sandbox) -> dict[str, Any]:
    """Return what status.json says."""
    found: dict[str, Any] = json.loads((merge.state / "status.json").read_text())
    return found


def settled(loop: Loop) -> bool:
    """Whether everything is folded, and prepared as far as it can be."""
    loop._preparing.take()
    prepared = loop._preparing._future is None and loop._preparing._rests_until > 0
    return loop.idle() and (prepared or not loop.settings.prepare)


def live(merge: Sandbox) -> None:
    """Be a daemon until there is nothing left to do."""
    with merge.loop() as loop:
        loop.prepares = True
        loop.post("rescan")
        loop.run(until=lambda: settled(loop))


def digests(merge: Sandbox) -> list[str]:
    """Return the digest of each version."""
    return [version.digest for version in merge.versions()]


def chunks(merge: Sandbox, version: int) -> list[Path]:
    """Return the files in which what is prepared for a version lies."""
    return sorted((merge.store.prepared / f"{version:06d}").glob("[0-9]*"))


def folded_plainly(place: Path, seeds: tuple[int, ...], **settings: Any) -> list[str]:
    """Return the digests of a merge that prepares nothing."""
    merge = new(place, prepare=False, **settings)
    for seed in seeds:
        merge.drop(f"seed-{seed}", fine_tuned(merge.model, seed))
        live(merge)
    assert not merge.store.prepared.exists()
    return digests(merge)


# ------------------------------------------------------------------------------------------------------- the same bytes


@pytest.mark.parametrize("settings", RULES, ids=str)
def test_a_fold_with_what_was_prepared_has_the_bytes_of_one_without(tmp_path: Path, settings: dict[str, Any]) -> None:
    merge = new(tmp_path / "merge", **settings)
    for seed in (1, 2, 3):
        merge.drop(f"seed-{seed}", fine_tuned(merge.model, seed))
        live(merge)
        assert [path.name for path in merge.store.prepared.iterdir()] == [f"{seed:06d}"]
        assert status(merge)["prepared"]["weights"] == status(merge)["prepared"]["of"] == 4
    assert digests(merge) == folded_plainly(tmp_path / "plain", (1, 2, 3), **settings)


def test_what_was_prepared_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = new(tmp_path / "merge")
    merge.drop("a", fine_tuned(merge.model, 1))
    live(merge)
    decomposed = watched(monkeypatch)
    merge.drop("b", fine_tuned(merge.model, 2))
    merge.fold_all()  # a command uses it too, and prepares nothing
    assert decomposed == []
    assert not list(merge.store.prepared.iterdir())  # it was for v1
    merge.drop("c", fine_tuned(merge.model, 3))
    merge.fold_all()
    assert {name for name, _ in decomposed} == {"layer.matrix.weight", "layer.tall.weight", "layer.wide.weight",
                                                "experts.up_proj"}  # fmt: skip


def watched(
    monkeypatch: pytest.MonkeyPatch, wait: Callable[[str], object] = lambda name: None
) -> list[tuple[str, str]]:
    """Return the decompositions from now on, each by its weight and the thread that it is on."""
    seen, real = [], Accumulator.prepare

    def prepare(self: Accumulator, kept: Slots, w: Weight) -> Slots:
        wait(w.name)
        seen.append((w.name, threading.current_thread().name.rpartition("_")[0]))
        return real(self, kept, w)

    monkeypatch.setattr(Accumulator, "prepare", prepare)
    return seen


def flip(path: Path) -> None:
    """Flip a bit in the middle of what was prepared."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


SPOILING: dict[str, Callable[[Path], object]] = {
    "a bit is flipped": lambda folder: flip(folder / "000001"),
    "it is cut": lambda folder: os.truncate(folder / "000001", 1000),
    "its end is lost": lambda folder: os.truncate(folder / "000001", (folder / "000001").stat().st_size - 1),
    "it is garbage": lambda folder: (folder / "000001").write_bytes(b"\xff" * 10_000),
    "it is gone": lambda folder: shutil.rmtree(folder),
}


@pytest.mark.parametrize("spoil", SPOILING.values(), ids=SPOILING.keys())
def test_what_was_spoilt_meanwhile_is_computed_again(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    merge = new(tmp_path / "merge")
    merge.drop("seed-1", fine_tuned(merge.model, 1))
    live(merge)
    spoil(merge.store.prepared / "000001")
    merge.drop("seed-2", fine_tuned(merge.model, 2))
    live(merge)
    assert digests(merge) == folded_plainly(tmp_path / "plain", (1, 2))


def test_what_goes_during_a_fold_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = new(tmp_path / "merge")
    merge.drop("seed-1", fine_tuned(merge.model, 1))
    live(merge)
    real = Prepared.of
    found: list[bool] = []

    def of(self: Prepared, *arguments: Any, **options: Any) -> Any:
        if True in found:
            shutil.rmtree(merge.store.prepared, ignore_errors=True)
        there = real(self, *arguments, **options)
        found.append(bool(there))
        return there

    monkeypatch.setattr(Prepared, "of", of)
    merge.drop("seed-2", fine_tuned(merge.model, 2))
    merge.fold_all()
    assert True in found
    assert found[-1] is False
    assert digests(merge) == folded_plainly(tmp_path / "plain", (1, 2))


def test_after_a_rollback_it_is_prepared_for_the_old_head(tmp_path: Path) -> None:
    found = []
    for prepare in (True, False):
        merge = new(tmp_path / str(prepare), prepare=prepare)
        for seed in (1, 2):
            merge.drop(f"seed-{seed}", fine_tuned(merge.model, seed))
            live(merge)
        with merge.loop() as loop:
            loop.prepares = True
            loop.ask(Rollback(version="v1"))
            loop.run(until=partial(settled, loop))
        assert [path.parent.name for path in merge.store.prepared.glob("*/*")] == ["000001"] * prepare
        merge.drop("seed-3", fine_tuned(merge.model, 3))
        live(merge)
        found.append(digests(merge))
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_what_was_taken_away_while_nothing_is_to_be_done_is_prepared_again(tmp_path: Path) -> None:
    merge = new(tmp_path / "merge")
    merge.drop("a", fine_tuned(merge.model, 1))
    with merge.loop() as loop:
        loop.prepares = True
        loop.post("rescan")
        loop.run(until=lambda: settled(loop))
        shutil.rmtree(merge.store.prepared)
        loop.post("look")
        loop.turn()
        loop.run(until=lambda: settled(loop))
    assert chunks(merge, 1)


def test_slots_that_were_made_once_more_are_others_to_what_is_prepared(tmp_path: Path) -> None:
    merge = new(tmp_path / "merge")
    merge.drop("a", fine_tuned(merge.model, 1))
    live(merge)
    (slots,) = [path for path in merge.store.files(1, "slots") if "Accumulator" in str(path.read_bytes()[:2000])]
    before = chunks(merge, 1)[0].stat().st_mtime_ns
    os.utime(slots, ns=(10**18, 10**18))  # whatever they held when it was prepared
    live(merge)
    assert chunks(merge, 1)[0].stat().st_mtime_ns > before


# --------------------------------------------------------------------------------------------- killed, and stopped


def large() -> Model:
    """Return a model whose weights take a chunk each, and a while."""
    generator = torch.Generator().manual_seed(6)
    return {f"layers.{k}.weight": torch.randn(640, 640, generator=generator) for k in range(8)}


def test_a_daemon_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    settings = {"parameters": {"alpha": 0.95}, "memory": "0"}
    merge = new(tmp_path / "merge", large(), **settings)
    merge.drop("seed-1", fine_tuned(merge.model, 1))
    with merge.running("run") as daemon:
        eventually(lambda: len(chunks(merge, 1)) >= 2)
        daemon.send(signal.SIGKILL)
        assert daemon.ended().code == -signal.SIGKILL
    there = {path: path.stat().st_mtime_ns for path in chunks(merge, 1)}
    with merge.running("run") as daemon:
        eventually(lambda: (status(merge).get("prepared") or {}).get("weights") == 8)
        assert {path: path.stat().st_mtime_ns for path in chunks(merge, 1)}.items() > there.items()
        merge.drop("seed-2", fine_tuned(merge.model, 2))
        eventually(lambda: status(merge)["head"] == 2)
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0
    plain = new(tmp_path / "plain", large(), prepare=False, **settings)
    for seed in (1, 2):
        plain.drop(f"seed-{seed}", fine_tuned(plain.model, seed))
        plain.fold_all()
    assert digests(merge) == digests(plain)


def test_a_checkpoint_a_pause_and_a_stop_wait_for_the_weight_that_is_being_prepared_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = new(tmp_path / "merge")
    merge.drop("a", fine_tuned(merge.model, 1))
    merge.fold_all()
    at, go_on = threading.Event(), threading.Event()

    def wait(name: str) -> None:
        at.set()
        go_on.wait()

    decomposed = watched(monkeypatch, wait)
    with merge.loop() as loop:
        loop.prepares = True
        loop.run(until=at.is_set)
        merge.drop("b", fine_tuned(merge.model, 2))
        loop.post("rescan")
        loop.run(until=lambda: merge.states().get("b") == "ready")
        for _ in range(2):
            loop.turn()
        assert not loop._work.busy  # two matrices would be decomposed at once
        loop.ask(Pause(why=""))  # answered at once
        go_on.set()
        eventually(lambda: not loop._preparing.busy)
        assert len(decomposed) == 1
        loop.run(until=lambda: settled(loop))  # while it is paused
    assert merge.states()["b"] == "ready"
    assert {thread for _, thread in decomposed} == {"mergd-prepare"}
    assert len(chunks(merge, 1)) == 2
    at.clear()
    go_on.clear()
    shutil.rmtree(merge.store.prepared)
    with merge.loop() as loop:
        loop.prepares = True
        loop.run(until=at.is_set)
        count = len(decomposed)
        threading.Timer(0.2, go_on.set).start()
    assert len(decomposed) == count + 1


@pytest.mark.parametrize(("large", "threads"), [(10**6, 1), (2, 2)])
def test_it_is_computed_as_a_fold_does_but_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int, threads: int
) -> None:
    monkeypatch.setattr("mergd.daemon.blocks.LONG_SIDE", large)  # a large matrix has all threads to itself
    merge, seen = new(tmp_path / "merge", threads=2), set()

    def look(name: str) -> None:
        nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        if name == "layer.matrix.weight":
            seen.add((threading.current_thread().name.rpartition("_")[0], nice, torch.get_num_threads()))

    watched(monkeypatch, look)
    for seed in (1, 2):
        merge.drop(f"seed-{seed}", fine_tuned(merge.model, seed))
        live(merge)
    shutil.rmtree(merge.store.prepared)
    merge.drop("seed-3", fine_tuned(merge.model, 3))
    merge.fold_all()
    assert seen == {("mergd-prepare", 19, threads), ("mergd-work", 0, threads)}


# -------------------------------------------------------------------------------------------------------------- room


def test_no_more_is_prepared_than_there_is_room_for(tmp_path: Path) -> None:
    merge = new(tmp_path / "merge", {f"layers.{k}.weight": torch.zeros(64, 64) for k in range(4)}, prepared="25kB")
    merge.drop("a", fine_tuned(merge.model, 1))
    live(merge)
    told = status(merge)["prepared"]
    assert (told["weights"], told["of"]) == (2, 4)
    assert told["bytes"] < 25_000


def test_the_room_that_the_next_version_needs_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = new(tmp_path / "merge")
    merge.drop("a", fine_tuned(merge.model, 1))
    merge.fold_all()
    free = 0
    monkeypatch.setattr(Store, "free", lambda store: free)
    with merge.loop() as loop:
        loop.prepares = True
        disk = loop._work.worker.disk
        free = disk.need + 64 * 2**20
        loop.run(until=lambda: settled(loop))
        assert disk.spare() == 0
    assert not chunks(merge, 1)


def test_what_is_prepared_goes_before_a_full_disk_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = new(tmp_path / "merge")
    merge.drop("a", fine_tuned(merge.model, 1))
    live(merge)
    assert chunks(merge, 1)
    real = Store.free
    monkeypatch.setattr(Store, "free", lambda store: 0 if list(store.prepared.glob("*")) else real(store))
    merge.drop("b", fine_tuned(merge.model, 2))
    merge.fold_all()
    assert merge.states() == {"a": "folded", "b": "folded"}
    assert not chunks(merge, 1)


def test_what_is_prepared_goes_before_a_budget_pauses(tmp_path: Path) -> None:
    merge = new(tmp_path / "merge", large(), parameters={"alpha": 0.95}, disk="100GB", memory="0")
    merge.drop("a", fine_tuned(merge.model, 1))
    live(merge)
    prepared = sum(path.stat().st_size for path in chunks(merge, 1))
    with merge.loop() as loop:
        need = loop._work.worker.disk.need
    set_in(merge.config, disk=str(merge.used() + need - prepared // 2))
    merge.drop("b", fine_tuned(merge.model, 2))
    merge.fold_all()
    assert merge.states() == {"a": "folded", "b": "folded"}
    assert not chunks(merge, 1)
