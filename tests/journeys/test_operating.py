"""What docs/operating.md says, done: faults that are planted are mended, and its sections keep what they promise."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakehub import Account
from faults.mounts import can_mount
from support.commands import Command, eventually
from support.hub import TOKEN, HubMerge, stop
from support.merges import Sandbox, make_merge, writable
from support.operating import follow, sections, status_says

from mergd.daemon.base import Base
from mergd.daemon.publishing import model_bytes, slots_bytes

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def done(section: str, merge: Sandbox, **names: object) -> list[str]:
    """Type what a section says, where no daemon runs."""
    given = {"NAME": "llama", "STATE": merge.state, "MERGD_CONFIG": merge.config} | names
    return list(follow(section, given, merge.mergd))


# ------------------------------------------------------------------------------------------------------ planted faults


@pytest.fixture
def of_nobody() -> Iterator[Sandbox]:
    """A merge whose daemon runs as somebody else."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        merge = make_merge(Path(folder), rescan=0.2)
        for path in (merge.state, *merge.state.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        for path in (merge.base / "model.safetensors", merge.config):
            path.chmod(0o644)
        yield merge


@as_root
def test_a_file_that_the_daemon_may_not_read(of_nobody: Sandbox) -> None:
    place = of_nobody.drop("a", 1)
    (place / "model.safetensors").chmod(0o600)
    with of_nobody.running("run") as daemon:
        heading = eventually(lambda: status_says(of_nobody, "blocked"))
        assert heading == "blocked: …: cannot read … (…)"
        done(heading, of_nobody, PLACE=place, GROUP=NOBODY)
        eventually(lambda: of_nobody.states() == {"a": "folded"})
        assert status_says(of_nobody, "blocked") == ""
        stop(daemon)


@pytest.mark.root
@pytest.mark.skipif(not can_mount(), reason="mounting needs root")
def test_a_full_disk() -> None:
    words = [sys.executable, "-m", "faults.mending"]
    ended = subprocess.run(
        words, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_token_that_was_revoked(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub()
    token, new = merge.root / "llama.hub-read", merge.root / "new"
    token.write_text(TOKEN)
    new.write_text("hf_another0123456789\n")
    environment = {"HF_TOKEN": "", "HF_TOKEN_PATH": str(token)}
    runs: list[Command] = []

    def systemctl(verb: str) -> None:
        assert verb == "restart"
        stop(runs[-1])

    with merge.running("run", **environment) as daemon:
        runs.append(daemon)
        merge.push("a", 1)
        eventually(lambda: merge.hub_states().get("a") == "folded")
        account = merge.hub.tokens.pop(TOKEN)
        heading = eventually(lambda: status_says(merge, "sources"))
        assert "HF_TOKEN" in heading
        merge.push("b", 2)
        merge.hub.tokens["hf_another0123456789"] = account
        names = {"NAME": "llama", "TOKEN": token, "NEW_TOKEN": new}
        assert list(follow(heading, names, merge.mergd, systemctl)) == [""]
    assert token.stat().st_mode & 0o777 == 0o600
    with merge.running("run", **environment) as daemon:
        eventually(lambda: merge.hub_states().get("b") == "folded")
        assert status_says(merge, "sources") == ""
        stop(daemon)


def test_no_daemon(merge: Sandbox) -> None:
    assert status_says(merge, "doing") == "doing: no daemon runs"
    (said,) = done("doing: no daemon runs", merge)
    assert "head: none yet" in said


def test_a_damaged_head(merge: Sandbox) -> None:
    merge.drop("a", 1)
    with merge.running("run") as daemon:
        eventually(lambda: merge.states() == {"a": "folded"})
        path = next(merge.store.versions.glob("000001/*.safetensors"))
        good = path.read_bytes()
        writable(path).write_bytes(good[:-4] + bytes(byte ^ 1 for byte in good[-4:]))
        assert merge.mergd("verify").code == 74
        heading = eventually(lambda: status_says(merge, "trouble"))
        assert heading == "trouble: … is damaged: …"
        assert "to have it made once more" in status_says(merge, "paused")
        done(heading, merge)
        assert path.read_bytes() == good
        eventually(lambda: not status_says(merge, "trouble") + status_says(merge, "paused"))
        stop(daemon)


def test_a_watched_folder_that_is_gone(merge: Sandbox) -> None:
    aside = merge.watch.rename(merge.root / "aside")
    with merge.running("run") as daemon:
        assert eventually(lambda: status_says(merge, "trouble")) == "trouble: cannot list …: …"
        aside.rename(merge.watch)
        stop(daemon)


def test_a_hook_that_fails(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, hook={"deploy": {"command": ["false"]}})
    merge.drop("a", 1)
    with merge.running("run") as daemon:
        eventually(lambda: "last error" in merge.mergd("status").out)
        assert status_says(merge, "hooks") == "hooks: …: … to be told, last error: …"
        stop(daemon)


def test_a_gated_repository(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub(**{"hub.allow": ["acme/*"]})
    merge.hub.tokens[TOKEN] = Account("eve")
    merge.push("a", 1, gated=True)
    assert merge.once().code == 0
    assert status_says(merge, "blocked") == "blocked: …: … is gated"


@pytest.mark.parametrize("label", ["checkpoints", "paused", "gates"])
def test_what_waits_for_a_person_has_a_heading(merge: Sandbox, label: str) -> None:
    merge.drop("a", {"other.weight": torch.zeros(3)})
    merge.fold_all()
    assert merge.mergd("pause").code == 0
    expected = {"checkpoints": "… refused", "paused": "no reason given", "gates": "none is set"}
    assert expected[label] in status_says(merge, label)


# ---------------------------------------------------------------------------------------- backup, restore, move, downgrade


def lived(merge: Sandbox) -> dict[str, Any]:
    """Fold two checkpoints and go back; returns what has to stay."""
    for name, seed in (("a", 1), ("b", 2)):
        merge.drop(name, seed)
        merge.fold_all()
    assert merge.mergd("rollback", "v1").code == 0
    assert merge.mergd("resume").code == 0
    return {"states": merge.states(), "head": merge.store.pointed(), "files": [merge.weight_files(n) for n in (1, 2)]}


def kept(merge: Sandbox) -> dict[str, Any]:
    return {"states": merge.states(), "head": merge.store.pointed(), "files": [merge.weight_files(n) for n in (1, 2)]}


def test_a_backup_of_a_running_daemon_is_restored(merge: Sandbox) -> None:
    before, backup = lived(merge), merge.root / "backup"
    with merge.running("run") as daemon:
        eventually(lambda: (merge.state / "control.sock").exists())
        done("Backup", merge, BACKUP=backup)
        stop(daemon)
    assert {path.name for path in backup.iterdir()} == {"state.tar", "mergd.db", "mergd.toml"}
    shutil.rmtree(merge.store.models)  # what a disk may do
    merge.store.database.write_bytes(b"")
    done("Restore", merge, BACKUP=backup)
    assert kept(merge) == before
    merge.drop("c", 3)
    assert merge.fold_all()[-1].state == "folded"


def test_a_state_is_moved(merge: Sandbox) -> None:
    before, new = lived(merge), merge.root / "elsewhere" / "state"
    done("Moving a state", merge, NEW=new)
    shutil.rmtree(merge.state)
    assert merge.settings.state == new
    new.rename(merge.state)  # so that this test finds it
    assert kept(merge) == before
    new.symlink_to(merge.state)
    merge.drop("c", 3)
    assert merge.fold_all()[-1].state == "folded"


def test_a_downgrade_keeps_versions_and_folds_nothing_twice(merge: Sandbox) -> None:
    before = lived(merge)
    assert merge.mergd("tag", "good", "v2").code == 0
    said = "".join(done("Downgrade", merge))
    assert "decisions" in said
    assert kept(merge) == before
    assert merge.mergd("tag").out.count("rebuilt-") == 2
    merge.fold_all()
    assert len(merge.versions()) == 2


# --------------------------------------------------------------------------------------------------------------- sizing


@pytest.mark.parametrize(("rule", "keep_last"), [("opcm", 2), ("average", 4)])
def test_a_state_takes_what_the_formula_says(tmp_path: Path, rule: str, keep_last: int) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {f"layer.{k}.weight": torch.randn(256, 256, generator=generator) for k in range(4)}
    merge = make_merge(tmp_path, base, rule=rule, keep_last=keep_last, keep_within=0, prepare=False)
    most = 0
    with merge.loop() as loop:
        real = loop._work.worker.retain

        def retain() -> None:  # with the new version, and before an old one is dropped
            nonlocal most
            most = max(most, taken(merge.state))
            real()

        loop._work.worker.retain = retain  # type: ignore[method-assign]
        for number in range(1, 8):
            merge.drop(f"c{number}", number)
            loop.post("rescan")
            loop.run(until=loop.idle)
        found: Base = loop._merge.base
        sizes = {"slots": slots_bytes(found, loop._merge.method), "model": model_bytes(found, "float32", False)}
    (line,) = [line for line in sections()["How much disk"].splitlines() if line.startswith("(max(")]
    names = {"keep_last": keep_last, "spilled": 0, "prepared": 0, "spool": 0, "archive": 0} | sizes
    said = eval(line.replace("MiB", "* 2**20"), {"max": max}, names)
    assert 0.97 * said < most < 1.03 * said, (most, said)


def taken(state: Path) -> int:
    """Return the bytes that a state takes, but for its database and what tells of it."""
    files = {path.stat().st_ino: path for path in state.rglob("*") if path.is_file() and path.suffix == ".safetensors"}
    return sum(path.stat().st_blocks * 512 for path in (*files.values(), state / "ballast"))
