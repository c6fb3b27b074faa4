"""What `mergd service` writes, as texts, and as systemd's own tools read it: of each way to run a merge."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mergd.daemon.settings import validate
from mergd.daemon.units import (
    Place,
    Program,
    base_files,
    credentials_of,
    memory_max,
    network_of,
    program_files,
    quoted,
    service_files,
)
from mergd.state.errors import Misconfigured

analysed = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
GIVEN = ("hub", "limits", "watch", "state", "memory", "hooks", "hook", "metrics")
WITHOUT_NETWORK, WITH_NETWORK = 5, 11  # tenths of a point of exposure, at most


def place(root: Path, **more: Any) -> Place:
    """Return a merge of folders, or of what `hub` says."""
    (root / "base").mkdir(exist_ok=True)
    given = {key: more.pop(key) for key in GIVEN if key in more}
    values: dict[str, Any] = {
        "base_model": more.pop("base", str(root / "base")),
        "watch": str(root / "watch"),
        "state": "/var/lib/mergd/llama",
    }
    settings = validate(values | given, "a test")
    config = Path("/etc/mergd/llama.toml")
    facts: dict[str, Any] = {"name": "llama", "config": config, "python": sys.executable, "settings": settings}
    return Place(**facts | {"buffers": 10**9} | more)


def own_part(made: Place) -> configparser.RawConfigParser:
    """Return what is the merge's own."""
    return read(service_files(made)[made.units / "mergd@llama.service.d" / "mergd.conf"])


def read(text: str) -> configparser.RawConfigParser:
    """Return a unit; a key that stands more than once keeps its last value."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string(text)
    return parser


HUB = {"namespace": "acme", "publish_to": "acme/merged", "write_token": "hub-write"}


def test_a_merge_of_folders_has_no_network(tmp_path: Path) -> None:
    service = own_part(place(tmp_path))["Service"]
    assert service["PrivateNetwork"] == "yes"
    assert service["IPAddressDeny"] == "any"
    assert service["RestrictAddressFamilies"] == "AF_UNIX"
    assert "LoadCredential" not in service


CALLED: dict[str, Any] = {"hook": {"ops": {"url": "https://ops.example.com/mergd", "secret": "ops"}}}


@pytest.mark.parametrize("more", [{"hub": HUB}, {"hooks": ["theirs"]}, {"base": "acme/base"}, CALLED], ids=str)
def test_what_asks_others_has_network(tmp_path: Path, more: dict[str, Any]) -> None:
    made = place(tmp_path, **more)
    assert network_of(made.settings) == "all"
    assert "PrivateNetwork" not in own_part(made)["Service"]


def test_tokens_come_as_credentials(tmp_path: Path) -> None:
    made = place(tmp_path, hub=HUB, credentials={"hub-read": Path("/etc/mergd/llama.hub-read")})
    assert credentials_of(made.settings) == ("hub-write",)
    service = own_part(made)["Service"]
    assert service["LoadCredential"] == "hub-read:/etc/mergd/llama.hub-read"
    assert service["Environment"] == "HF_TOKEN_PATH=%d/hub-read"


def test_what_signs_is_a_credential_too(tmp_path: Path) -> None:
    assert credentials_of(place(tmp_path, **CALLED).settings) == ("ops",)
    called = place(tmp_path, hub=HUB | {"webhook_secret": "knock"}, metrics={"listen": "127.0.0.1:9190"})
    assert credentials_of(called.settings) == ("hub-write", "knock")


def test_figures_are_served_to_this_machine_alone(tmp_path: Path) -> None:
    service = own_part(place(tmp_path, metrics={"listen": "127.0.0.1:9190"}))["Service"]
    assert (service["IPAddressDeny"], service["IPAddressAllow"]) == ("any", "localhost")
    assert "PrivateNetwork" not in service


def test_figures_go_into_a_file_without_network(tmp_path: Path) -> None:
    service = own_part(place(tmp_path, metrics={"file": "/var/lib/node_exporter/mergd.prom"}))["Service"]
    assert service["ReadWritePaths"] == "-/var/lib/node_exporter"
    assert service["PrivateNetwork"] == "yes"


def test_a_token_that_lies_in_a_file_is_no_credential(tmp_path: Path) -> None:
    made = place(tmp_path, hub=HUB | {"write_token": "/etc/mergd/hub-write"})
    assert credentials_of(made.settings) == ()


def test_the_folders_are_waited_for_and_seen(tmp_path: Path) -> None:
    own = own_part(place(tmp_path))
    assert own["Unit"]["RequiresMountsFor"] == f"{tmp_path}/watch {tmp_path}/base /var/lib/mergd/llama"
    assert own["Service"]["BindReadOnlyPaths"] == f"-{tmp_path}/watch -{tmp_path}/base"
    assert "BindPaths" not in own["Service"]


def test_a_state_elsewhere_is_bound(tmp_path: Path) -> None:
    service = own_part(place(tmp_path, state="/data/merge"))["Service"]
    assert service["BindPaths"] == "/data/merge"
    assert service["StateDirectory"] == ""


def test_the_memory_is_what_is_set_and_what_comes_beside_it(tmp_path: Path) -> None:
    assert own_part(place(tmp_path, buffers=10**9))["Service"]["MemoryMax"] == str(memory_max(10**9))
    assert memory_max(1_468_000_000) > 1_277_000_000  # docs/benchmarks.md: what a fold with such buffers took
    assert memory_max(573_000_000) > 687_000_000
    assert memory_max(80_000_000) > 420_000_000


def test_the_interpreter_is_the_one_that_installed(tmp_path: Path) -> None:
    assert own_part(place(tmp_path))["Service"]["ExecStart"] == f"{sys.executable} -m mergd run -n %i"
    elsewhere = place(tmp_path, config=Path("/srv/my merge.toml"))
    assert own_part(elsewhere)["Service"]["ExecStart"].endswith('-m mergd run -c "/srv/my merge.toml"')


def test_another_user_keeps_the_group_that_may_ask(tmp_path: Path) -> None:
    service = own_part(place(tmp_path, user="trainer", groups=("trainer",)))["Service"]
    assert (service["User"], service["SupplementaryGroups"]) == ("trainer", "trainer")
    assert "Group" not in service


def test_a_newer_systemd_is_told_of_reloads_in_its_own_way(tmp_path: Path) -> None:
    assert "Type" not in own_part(place(tmp_path, systemd=252))["Service"]
    assert own_part(place(tmp_path, systemd=253))["Service"]["Type"] == "notify-reload"


def test_a_gpu_is_let_in_only_where_one_is_used(tmp_path: Path) -> None:
    assert "PrivateDevices" not in own_part(place(tmp_path))["Service"]
    assert own_part(place(tmp_path, gpu=True))["Service"]["PrivateDevices"] == "no"


def test_a_users_own_service_asks_for_no_other_user(tmp_path: Path) -> None:
    made = place(tmp_path, own=True, units=tmp_path)
    files = service_files(made)
    assert set(files) == {tmp_path / "mergd@.service", tmp_path / "mergd@llama.service.d" / "mergd.conf"}
    for text in files.values():
        assert not re.search(r"^(User|Group|Private\w+|Protect\w+|Bind\w*)=", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("path", "text"), [("/a/b", "/a/b"), ("/a b", '"/a b"'), ("/100%", "/100%%"), ("/a:b", '"/a:b"')]
)
def test_a_path_is_one_word(path: str, text: str) -> None:
    assert quoted(path) == text


@pytest.mark.parametrize("path", ["/a\nExecStartPre=/bin/sh", '/a"b', "/a\\b", "/a'b", "/a\x1b"])
def test_a_path_that_could_be_more_than_a_word_is_refused(path: str) -> None:
    with pytest.raises(Misconfigured):
        quoted(path)


# ------------------------------------------------------------------------------------------------ as systemd reads it


def analyse(folder: Path, files: dict[Path, str], verb: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Write files as they would lie in /etc/systemd/system, and run systemd-analyze on the unit that `words` end with."""
    for path, text in files.items():
        if path.suffix != ".conf" or path.parent.name.endswith(".service.d"):
            there = folder / path.relative_to("/etc/systemd/system")
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_text(text)
    env = os.environ | {
        "SYSTEMD_COLORS": "0",
        "SYSTEMD_PAGER": "cat",
        "LC_ALL": "C.UTF-8",
        "SYSTEMD_UNIT_PATH": f"{folder}:",
    }
    line = ["systemd-analyze", verb, *words]
    return subprocess.run(line, env=env, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "folders": ({}, WITHOUT_NETWORK),
    "hub": ({"hub": HUB, "credentials": {"hub-write": Path("/etc/mergd/hub-write")}}, WITH_NETWORK),
    "trainer": ({"user": "daemon", "groups": ("daemon",)}, WITHOUT_NETWORK),
    "elsewhere": ({"state": "/data/a merge"}, WITHOUT_NETWORK),
}


@pytest.mark.systemd
@analysed
@pytest.mark.parametrize("way", WAYS)
def test_systemd_finds_what_is_written_sound_and_safe(tmp_path: Path, way: str) -> None:
    more, most = WAYS[way]
    files, units = service_files(place(tmp_path, **more)), tmp_path / "units"
    done = analyse(units, files, "verify", "--man=no", "mergd@llama.service")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (units / "mergd@llama.service").symlink_to("mergd@.service")
    done = analyse(units, files, "security", "--offline=yes", f"--threshold={most}", "mergd@llama.service")
    if re.search(r"unrecognized option|invalid argument", done.stderr):
        pytest.skip("this systemd-analyze does not judge files")  # before version 250
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


# -------------------------------------------------------------------------------------------------- gates and hooks


def program(**more: Any) -> Program:
    """Return a gate's program."""
    values: dict[str, Any] = {
        "kind": "gate",
        "merge": "llama",
        "name": "evals",
        "command": ["/usr/bin/env", "judge me", "$HOME"],
    }
    return Program(**values | {"python": sys.executable, "state": Path("/var/lib/mergd/llama")} | more)


def test_what_a_gates_program_is_given() -> None:
    made = program(seconds=60, memory="2G")
    files = {path.name: read(text) for path, text in program_files(made).items()}
    socket, service = (
        files["mergd-gate-llama--evals.socket"]["Socket"],
        files["mergd-gate-llama--evals@.service"]["Service"],
    )
    assert socket["ListenStream"] == "/run/mergd-programs/llama/gate-evals.sock" == str(made.socket)
    assert (socket["Accept"], socket["SocketMode"], socket["SocketUser"]) == ("yes", "0600", "mergd")
    assert "SocketGroup" not in socket  # a user's group may have any name
    assert int(socket["MaxConnections"]) > 1  # what was given up may still be ending
    assert service["ExecStart"] == f'{sys.executable} -m mergd.plugins.run_program /usr/bin/env "judge me" $$HOME'
    assert (service["DynamicUser"], service["MemoryMax"], service["RuntimeMaxSec"]) == ("yes", "2G", "60")
    assert service["TemporaryFileSystem"] == "/var/lib/mergd/llama:ro"
    assert service["PrivateNetwork"] == "yes"
    assert not {"LoadCredential", "MemoryDenyWriteExecute", "EnvironmentFile"} & set(service)


def test_a_gate_sees_where_the_base_models_files_really_are(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "b1").touch()
    base = tmp_path / "real"
    base.mkdir()
    (base / "model.safetensors").symlink_to("../blobs/b1")
    (tmp_path / "link").symlink_to(base)
    files = base_files(place(tmp_path, base=str(tmp_path / "link")).settings, "llama")
    assert files == (base, tmp_path / "blobs" / "b1")
    text = program_files(program(base=files))[Path("/etc/systemd/system/mergd-gate-llama--evals@.service")]
    assert f"-{base} -{tmp_path}/blobs/b1\n" in text


def test_a_gate_sees_of_the_services_cache_the_base_model_alone(tmp_path: Path) -> None:
    files = base_files(place(tmp_path, base="acme/base@main").settings, "llama")
    text = program_files(program(base=files))[Path("/etc/systemd/system/mergd-gate-llama--evals@.service")]
    assert "TemporaryFileSystem=/var/lib/mergd/llama:ro /var/cache/mergd/llama:ro\n" in text
    assert " -/var/cache/mergd/llama/hf/hub/models--acme--base\n" in text


def test_more_is_given_only_where_it_is_asked_for() -> None:
    files = {
        path.name: read(text) for path, text in program_files(program(network=True, gpu=True, user="judge")).items()
    }
    service = files["mergd-gate-llama--evals@.service"]["Service"]
    assert not {"PrivateNetwork", "PrivateDevices", "DynamicUser"} & set(service)
    assert service["User"] == "judge"


@pytest.mark.systemd
@analysed
@pytest.mark.parametrize("more", [{}, {"kind": "hook", "network": True}], ids=str)
def test_systemd_finds_a_programs_units_sound(tmp_path: Path, more: dict[str, Any]) -> None:
    made = program(**more)
    done = analyse(tmp_path, program_files(made), "verify", "--man=no", f"{made.unit}.socket", f"{made.unit}@1.service")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
