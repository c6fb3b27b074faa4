"""Shell completion: what each shell's own script asks the command, and what it is answered."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import mergd, start_forking
from support.merges import Sandbox


@pytest.fixture(scope="session", autouse=True)
def _forking() -> None:
    start_forking()


def completed(line: str, at: Path, config: Path | None = None) -> list[str]:
    """Return what bash is offered for the last word of a line."""
    words = {"_MERGD_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = mergd(at=at, environment=words | ({"MERGD_CONFIG": str(config)} if config else {}))
    assert (done.code, done.err) == (0, "")
    return [line for line in done.out.splitlines() if line]


@pytest.fixture
def folded(merge: Sandbox) -> Sandbox:
    for name, seed in (("first", 1), ("second", 2), ("$(touch hurt)", 3)):
        merge.drop(name, seed)
        merge.fold_all()
    assert merge.mergd("tag", "good", "v1").code == 0
    return merge


def test_commands_and_options(tmp_path: Path) -> None:
    assert completed("mergd roll", tmp_path) == ["rollback"]
    assert completed("mergd service un", tmp_path) == ["uninstall"]
    assert "--json" in completed("mergd status --", tmp_path)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mergd rollback ", ["head", "v3", "v2", "v1", "good"]),
        ("mergd show s", ["second"]),
        ("mergd remove ", ["second", "first"]),
        ("mergd tag -d ", ["good"]),
        ("mergd rules opc", ["opcm"]),
        ("mergd remerge --rule opc", ["opcm"]),
    ],
)
def test_names(folded: Sandbox, line: str, offered: list[str]) -> None:
    assert completed(line, folded.root, folded.config) == offered


def test_the_configuration_is_the_one_on_the_line(folded: Sandbox) -> None:
    assert completed(f"mergd -c {folded.config} export v", folded.root) == ["v3", "v2", "v1"]
    assert completed(f"mergd verify -c {folded.config} g", folded.root) == ["good"]


@pytest.mark.parametrize("config", ["gone.toml", "broken.toml"])
def test_without_a_state_nothing_is_offered_and_nothing_fails(tmp_path: Path, config: str) -> None:
    (tmp_path / "broken.toml").write_text("state = [")
    assert completed("mergd rollback ", tmp_path, tmp_path / config) == []


@pytest.mark.parametrize(
    ("shell", "more"), [("zsh", {}), ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"})], ids=["zsh", "fish"]
)
def test_the_other_shells(folded: Sandbox, shell: str, more: dict[str, str]) -> None:
    asked = {"_MERGD_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "mergd rollback g"} | more
    done = mergd(at=folded.root, environment=asked | {"MERGD_CONFIG": str(folded.config)})
    assert "good" in done.out
    assert "second" not in done.out
    assert "touch" not in mergd(at=folded.root, environment=asked | {"_TYPER_COMPLETE_ARGS": "mergd show "}).out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(tmp_path: Path, shell: str) -> None:
    done = mergd(at=tmp_path, environment={"_MERGD_COMPLETE": f"source_{shell}"})
    assert done.code == 0
    assert {"bash": "complete -o default -F _mergd_completion mergd", "zsh": "#compdef mergd",
            "fish": "complete --command mergd"}[shell] in done.out  # fmt: skip


def test_bash_runs_its_script(folded: Sandbox) -> None:
    """The whole way, in a real shell."""
    command = folded.root / "mergd"
    main = "import sys; from mergd.daemon.cli import main; sys.argv[0] = 'mergd'; main()"
    command.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-c", main])} "$@"\n')
    command.chmod(0o755)
    script = (
        """. ./script; COMP_WORDS=(mergd rollback g); COMP_CWORD=2; _mergd_completion mergd; echo "${COMPREPLY[@]}" """
    )
    (folded.root / "script").write_text(mergd(at=folded.root, environment={"_MERGD_COMPLETE": "source_bash"}).out)
    path = {"PATH": f"{folded.root}:{os.environ['PATH']}", "MERGD_CONFIG": str(folded.config)}
    done = subprocess.run(["bash", "-c", script], cwd=folded.root, env=os.environ | path, capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert (done.stdout, done.stderr) == ("good\n", "")
