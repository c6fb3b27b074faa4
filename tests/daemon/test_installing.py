"""What stands in the way of an installation, and the files that it writes and removes, without systemd."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from support.commands import mergd, start_forking
from support.merges import Sandbox
from support.models import save_model, tiny_base

from mergd.daemon import installing, seeing, uninstalling
from mergd.daemon.settings import validate
from mergd.daemon.units import MARK, Place, Program, drop_in, program_files
from mergd.state.errors import Misconfigured, NotPermitted


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    files = {tmp_path / "a.d" / "mergd.conf": f"{MARK} one\n", tmp_path / "b": f"{MARK} two\n"}
    assert installing.write(files) == list(files)
    assert installing.write(files) == []
    assert installing.write(files | {tmp_path / "b": f"{MARK} three\n"}) == [tmp_path / "b"]
    assert (tmp_path / "b").read_text() == f"{MARK} three\n"


def test_what_somebody_else_wrote_is_neither_replaced_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("[Service]\n")
    with pytest.raises(Misconfigured, match="was not written by mergd service"):
        installing.write({tmp_path / "ours": f"{MARK}\n", tmp_path / "theirs": f"{MARK}\n"})
    assert not (tmp_path / "ours").exists()
    assert not uninstalling.remove(tmp_path / "theirs")
    assert (tmp_path / "theirs").exists()


def test_a_folder_of_drop_ins_goes_with_its_last(tmp_path: Path) -> None:
    folder = tmp_path / "mergd@a.service.d"
    installing.write({folder / "mergd.conf": MARK})
    (folder / "override.conf").write_text("[Service]\n")
    assert uninstalling.remove(folder / "mergd.conf")
    assert folder.exists()
    (folder / "override.conf").unlink()
    installing.write({folder / "mergd.conf": MARK})
    assert uninstalling.remove(folder / "mergd.conf")
    assert not folder.exists()


@pytest.mark.parametrize("name", ["llama", "llama-3.1_8b", "a-b-c", "A.b"])
def test_a_name_of_a_service(name: str) -> None:
    installing.check_name(name)


@pytest.mark.parametrize("name", ["", "a--b", "-a", "a-", "a/b", "a b", "a@b", "a:b", "a\nb", "é", ".", "..", "..."])
def test_no_name_of_a_service(name: str) -> None:
    with pytest.raises(Misconfigured):
        installing.check_name(name)


def test_without_systemd_it_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "BOOTED", tmp_path / "none")
    with pytest.raises(Misconfigured, match="not booted with systemd"):
        installing.check_may(own=False)


def test_whoever_is_not_root_is_told_of_a_service_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installing, "BOOTED", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotPermitted) as refused:
        installing.check_may(own=False)
    assert "--user" in refused.value.hint
    installing.check_may(own=True)


def test_the_buffers_are_as_set_or_as_the_largest_matrix_needs(merge: Sandbox) -> None:
    assert installing.buffers_of(merge.settings) == 80_000_000
    assert installing.buffers_of(merge.settings.model_copy(update={"memory": 10**9})) == 10**9


# ------------------------------------------------------------------------------------------------ programs of a merge


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What systemd is told."""
    told: list[str] = []

    def tell(own: bool, *words: str) -> str:
        told.append(" ".join(words))
        return ""

    monkeypatch.setattr(installing, "systemctl", tell)
    monkeypatch.setattr(uninstalling, "systemctl", tell)
    return told


def test_a_programs_socket_is_for_the_user_that_the_service_was_installed_for(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured) as refused:
        installing.asker_of("llama", tmp_path)
    assert "mergd service install -n llama" in refused.value.hint
    installing.write({drop_in(tmp_path, "llama"): f"{MARK}\n[Service]\n"})
    assert installing.asker_of("llama", tmp_path) == "mergd"
    installing.write({drop_in(tmp_path, "llama"): f"{MARK}\n[Service]\nUser=trainer\nSupplementaryGroups=staff\n"})
    assert installing.asker_of("llama", tmp_path) == "trainer"


def test_what_is_to_be_known_of_programs_is_said(merge: Sandbox, tmp_path: Path) -> None:
    values = merge.settings.model_dump() | {"gate": {"quick": {"command": ["/bin/true"]}}}
    place = Place("llama", merge.config, "python", validate(values, "a test"), 10**9, user="trainer", units=tmp_path)
    installing.write(program_files(program(asker="mergd", name="old"), tmp_path))
    installing.write(program_files(program(asker="trainer", name="new"), tmp_path))
    child, other = installing.notes_on(place)
    assert "gate quick" in child
    assert "mergd-gate-llama--old.socket is for another user than trainer" in other


def program(**more: Any) -> Program:
    """Return a gate of llama's."""
    given: dict[str, Any] = {"kind": "gate", "merge": "llama", "name": "evals", "command": ["/bin/judge"]}
    return Program(**given | {"python": sys.executable, "state": Path("/var/lib/mergd/llama")} | more)


def test_one_program_is_taken_away_and_the_rest_stays(tmp_path: Path, told: list[str]) -> None:
    for name in ("evals", "evals-2"):
        installing.write(program_files(program(name=name), tmp_path))
    done = uninstalling.uninstall_program("gate", "llama", "evals", tmp_path)
    assert {path.name for path in done.removed} == {
        "mergd-gate-llama--evals.socket",
        "mergd-gate-llama--evals@.service",
    }
    assert len(list(tmp_path.iterdir())) == 2
    assert told == ["disable --now mergd-gate-llama--evals.socket", "daemon-reload"]
    with pytest.raises(Misconfigured, match="has no gate evals"):
        uninstalling.uninstall_program("gate", "llama", "evals", tmp_path)


def test_a_program_that_its_unit_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeing, "check_interpreter", lambda *_: None)
    for words in (["/var/tmp/ada/judge"], ["/usr/bin/python3", "/run/user/1/judge.py"], ["/tmp/judge"]):
        with pytest.raises(Misconfigured, match="does not see"):
            seeing.check_program(program(command=words))
    seeing.check_program(program(command=["/var/tmp/ada/bin/judge"], reads=(Path("/var/tmp/ada/bin"),)))
    seeing.check_program(program(command=["/usr/bin/true", "home/judge"]))


def test_a_base_model_that_others_may_not_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeing, "check_interpreter", lambda *_: None)
    base = save_model(tmp_path / "base", tiny_base())
    weights = next(base.glob("*.safetensors"))
    base.chmod(0o755)
    for path in base.iterdir():
        path.chmod(0o644)
    seeing.check_program(program(base=(base,)))
    for path, mode in ((weights, 0o600), (base, 0o700)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(Misconfigured, match="others may not read") as refused:
            seeing.check_program(program(base=(base,)))
        assert "--user-name" in refused.value.hint
        seeing.check_program(program(base=(base,), user="judge"))
        path.chmod(before)


def test_an_interpreter_that_a_unit_does_not_see_is_refused() -> None:
    with pytest.raises(Misconfigured, match="does not see") as refused:
        seeing.check_interpreter("llama", "/var/tmp/ada/bin/python", "")
    assert "python3 -m venv /opt/mergd" in refused.value.hint
    with pytest.raises(Misconfigured, match="does not see"):
        seeing.check_program(program(python="/var/tmp/ada/bin/python"))


def test_a_configuration_that_the_service_does_not_see_is_refused() -> None:
    with pytest.raises(Misconfigured, match="is in /var/tmp"):
        seeing.check_config(Path("/var/tmp/ada/mergd.toml"))
    seeing.check_config(Path("/srv/mergd.toml"))


# ---------------------------------------------------------------------------------------------------------- purging


def test_what_is_no_merge_is_not_purged(merge: Sandbox, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis").touch()
    link = tmp_path / "link"
    link.symlink_to(merge.state)
    for state in (theirs, link, tmp_path / "none"):
        settings = merge.settings.model_copy(update={"state": state})
        with pytest.raises(Misconfigured, match="not deleted"):
            uninstalling.check_purge(settings)
        with pytest.raises(Misconfigured, match="not deleted"):
            uninstalling.purge(settings, merge.config, "llama", own=False)
    assert (theirs / "thesis").exists()
    assert merge.config.exists()
    uninstalling.check_purge(merge.settings)


@pytest.mark.parametrize("own", [False, True])
def test_purging_deletes_the_merge_and_the_machines_cache_only_for_the_machines(
    merge: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    monkeypatch.setattr(uninstalling, "CACHES", tmp_path / "cache")
    cache = tmp_path / "cache" / "llama"
    cache.mkdir(parents=True)
    removed = uninstalling.purge(merge.settings, merge.config, "llama", own)
    assert set(removed) == {merge.state, merge.config} | (set() if own else {cache})
    assert not any(path.exists() for path in removed)
    assert cache.exists() == own


@pytest.fixture(scope="module", autouse=True)
def forking() -> None:
    start_forking()


def test_a_dry_run_prints_every_file_and_writes_none(merge: Sandbox) -> None:
    ended = mergd("service", "install", "-n", "llama", "-c", merge.config, "--dry-run", at=merge.root)
    assert ended.code == 0, ended.err
    for path in ("mergd@.service", "mergd@llama.service.d/mergd.conf"):
        assert f"# /etc/systemd/system/{path}\n" in ended.out
    assert "# /etc/sysusers.d/mergd.conf\n" in ended.out
    assert f"BindPaths={merge.state}" in ended.out
    assert not Path("/etc/systemd/system/mergd@llama.service.d").exists()


def test_a_program_of_which_nobody_knows_where_it_lies_is_refused(merge: Sandbox) -> None:
    words = ("service", "gate", "-n", "llama", "-c", merge.config, "--program", "evals", "--dry-run", "judge")
    ended = mergd(*words, at=merge.root)
    assert ended.code == 78
    assert "no absolute path" in ended.err


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_state_of_roots_is_handed_over_whole(merge: Sandbox) -> None:
    outside = merge.root / "outside"
    outside.touch()
    (merge.state / "models" / "link").symlink_to(outside)
    installing.hand_over(merge.state, "daemon")
    owners = {path.lstat().st_uid for path in (merge.state, *merge.state.rglob("*"))}
    assert owners == {1}
    assert outside.stat().st_uid == 0
