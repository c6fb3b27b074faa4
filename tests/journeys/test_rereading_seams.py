"""Read-outs and re-merges upon, under and beside everything else: folds, removals, replays, damage, limits, old states."""

from pathlib import Path
from typing import Any

import pytest
from journeys.test_reading import NAMES, ask, filled, merged
from support.merges import Sandbox

from mergd.daemon.requests import Publish, Remerge, Replay
from mergd.state.errors import Unavailable
from mergd.state.history import History

AT_ONCE: dict[str, Any] = {"rule": "consensus_ta", "parameters": {"lambda": 0.5}}


def without_model(merge: Sandbox, number: int) -> dict[str, str]:
    """Let a version have lost its published model to retention; returns what all of its files were."""
    before = merge.weight_files(number)
    with History(merge.store.database, write=True) as history:
        history.drop_files(number, "model")
    merge.store.drop(number, "model")
    return before


# ------------------------------------------------------------------------------- what a batch rule read is in no slot


def test_the_model_that_a_batch_rule_read_is_made_again_from_sources_though_its_slots_are_there(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Remerge(**AT_ONCE), Publish(rule="task_arithmetic"))
    before = without_model(merge, 5)
    assert {entry["version"]: entry["files"] for entry in merge.log()}[5] == "replayable"
    ended = merge.mergd("export", "v5", tmp_path / "out", "--lora", "4")
    assert (ended.code, "dropped by retention" in ended.err) == (2, True)
    ask(merge, Replay(version="v5"))
    assert merge.weight_files(5) == before


def test_it_is_gone_where_a_source_is(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Remerge(**AT_ONCE), Publish(rule="task_arithmetic"))
    without_model(merge, 5)
    merge.remove("b")
    assert {entry["version"]: entry["files"] for entry in merge.log()}[5] == "gone"
    with pytest.raises(Unavailable, match=r"gone of b \("):
        ask(merge, Replay(version="v5"))
    merge.drop("e", 5)
    merge.fold_all()  # the slots are there, and what comes after needs no more
    assert merge.versions()[-1].totals.folded == len(NAMES) + 1


def test_the_scale_of_a_batch_rule_is_by_the_norm_with_its_own_factors(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Remerge(**AT_ONCE, scale="mean-norm", lines={"alpha": 0.25}))
    whole = sum(float(tensor.double().square().sum()) for tensor in merged(merge).values()) ** 0.5
    assert whole == pytest.approx(merge.versions()[-1].totals.mean_norm, rel=1e-4)


def test_its_disk_is_what_it_takes(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    needs = [ask(merge, Remerge(rule=rule, plan=True))[0]["disk"] for rule in ("average", "consensus_ta")]
    assert needs[1] - needs[0] == sum(4 * tensor.numel() for tensor in merged(merge).values())
