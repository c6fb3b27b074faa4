"""The unit and its example configuration: systemd's own tools read the one, the settings' own code the other."""

import configparser
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import repository

from mergd.daemon.settings import Settings, validate
from mergd.state.errors import Busy, Damaged, Misconfigured, NotPermitted, Refused, Unavailable

FOLDER = repository.ROOT / "systemd"
UNIT = FOLDER / "mergd@.service"
EXPOSURE = 20  # tenths of a point, of what systemd-analyze calls OK at most 40


def unit() -> configparser.RawConfigParser:
    """Return the unit; a key that stands more than once keeps its last value."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string(UNIT.read_text())
    return parser


def systemd_analyze(verb: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run systemd-analyze on the unit."""
    words = ["systemd-analyze", verb, *map(str, arguments), str(UNIT)]
    env = os.environ | {"SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "cat", "LC_ALL": "C.UTF-8"}
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)


analysed = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


@pytest.mark.systemd
@analysed
def test_systemd_finds_nothing_wrong_with_the_unit() -> None:
    done = systemd_analyze("verify", "--man=no")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.systemd
@analysed
def test_the_unit_gives_the_daemon_little_more_than_it_needs() -> None:
    done = systemd_analyze("security", "--offline=yes", f"--threshold={EXPOSURE}")
    if re.search(r"unrecognized option|invalid argument", done.stderr):
        pytest.skip("this systemd-analyze does not judge files")  # before version 250
    assert done.returncode == 0, done.stdout + done.stderr


def test_systemd_does_not_restart_what_only_a_person_can_mend() -> None:
    service = unit()["Service"]
    codes = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert codes == {error.exit_code for error in (Damaged, NotPermitted, Misconfigured)}
    assert codes == {74, 77, 78}
    assert not codes & {Refused.exit_code, Unavailable.exit_code}
    assert service["Restart"] == "on-failure"


def test_older_systemds_know_the_units_type() -> None:
    assert unit()["Service"]["Type"] == "notify"  # notify-reload came with 253, which much of what runs is not
    assert unit()["Service"]["NotifyAccess"] == "main"


def test_the_unit_starts_the_configuration_of_its_instance_and_reloads_by_sighup() -> None:
    service = unit()["Service"]
    assert service["ExecStart"].endswith("mergd run -n %i")
    assert "-HUP" in service["ExecReload"]


def test_the_example_configuration_is_one() -> None:
    values = tomllib.loads((FOLDER / "mergd.toml").read_text())
    settings = validate(values, "mergd.toml")
    assert settings.model_fields_set == values.keys() >= {"base_model", "watch", "state"}
    assert settings.model_fields_set <= Settings.model_fields.keys()


def test_the_example_keeps_its_state_where_the_unit_lets_it_write() -> None:
    values = tomllib.loads((FOLDER / "mergd.toml").read_text())
    written = unit()["Service"]["StateDirectory"].replace("%i", "NAME")
    assert Path(values["state"]) == Path("/var/lib") / written
    assert not Path(values["watch"]).is_relative_to("/var/lib")


@pytest.mark.parametrize("name", ["mergd@.service", "mergd-user@.service"])
def test_what_waiting_mends_is_waited_for_without_end(name: str) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string((FOLDER / name).read_text())
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"
    assert "StartLimitBurst" not in parser["Unit"]
    codes = {int(code) for code in parser["Service"]["RestartPreventExitStatus"].split()}
    assert not codes & {Unavailable.exit_code, Busy.exit_code}
