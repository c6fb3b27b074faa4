"""The settings: what each key takes, what is said of what it does not, where the file is looked for, and whose it must be."""

import grp
import os
import pwd
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.merges import make_merge

from mergd.daemon import configuration as module
from mergd.daemon.configuration import check_owner, find_config, new_config, read_settings, values_of
from mergd.daemon.initialise import config_text
from mergd.daemon.settings import Settings, keys, validate
from mergd.daemon.settings_tables import Limits
from mergd.plugins.gates.sane import Sane
from mergd.state.errors import Misconfigured, NotPermitted

Values = dict[str, Any]


@pytest.fixture
def least(tmp_path: Path) -> Values:
    """The keys that have no default."""
    return {"base_model": "org/name@main", "watch": str(tmp_path / "watch"), "state": str(tmp_path / "state")}


BAD: dict[str, list[Any]] = {
    "base_model": [7, None, ["a"]],
    "watch": [7],
    "state": [7, None],
    "source": [7, None],
    "rule": [7, None],
    "parameters": ["alpha", 1, None],
    "scale": ["mean", None, "inf", [1]],
    "lines.alpha": ["deep", None, "nan"],
    "lines.beta": ["deep", None, "inf"],
    "normalise": ["perhaps", 7],
    "also_keep": ["ties", 7, [1]],
    "out_dtype": ["float8", "F32", None, 16],
    "convolutions": ["fold", None, 7],
    "missing": ["keep", None],
    "extra": ["keep", None],
    "skip": ["classifier.*", 7, [1]],
    "rename": ["a", 7, {"(": "b"}, {"a": "\\2"}],
    "vocabulary": ["grow", None],
    "threads": [0, -1, 1025, "many", 1.5],
    "share": [0, -1, 1000.5, "much", "nan", "inf", True, None],
    "trust_sidecar": ["perhaps", 7, None],
    "weight_range": [1, [1], [2, 1], [0, 1], [1, 2, 3], [0.1, "inf"], [True, 2], None],
    "existing": ["keep", "", None],
    "quiet": ["soon", "5 parsecs", -1, "-5s", None],
    "quiet_unsure": ["soon", -1, None],
    "quiet_network": ["soon", -1, None],
    "marked_only": ["perhaps", 7],
    "on_change": ["keep", "", None],
    "per_run": ["first", "", None],
    "run_quiet": ["soon", -1, None],
    "rescan": [0, "0s", -3, "often"],
    "events": ["perhaps", 2, None],
    "memory": ["much", -5],
    "device": ["gpu", "cuda:", "cuda:x", "CPU", 0],
    "shard_size": ["huge", 0, -1],
    "copy_code": ["perhaps", 7],
    "keep_last": [0, -1, "all", 2.5],
    "keep_within": [-1, "for ever"],
    "keep_daily": [-1, "all", 2.5],
    "keep_weekly": [-1, "all", 2.5],
    "keep_slots": [-1, "all", 2.5],
    "disk": [-1, "much", None],
    "prepare": ["perhaps", 7, None],
    "prepared": [-1, "much", None],
    "limits.norm": [-0.1, "much", None, "inf", "nan", True],
    "limits.weight_norm": [-1, "much", None],
    "limits.sigmas": [-6, "six", None],
    "limits.cosine": [0.5, -1.5, "opposite", True],
    "limits.near_copy": [1.5, -0.99, "near"],
    "limits.share": [1.1, -0.5, "half"],
    "limits.adapter_rank": [-1, 2.5, "few"],
    "limits.adapter_scale": [-1, "much", None],
    "limits.per_day": [-1, 2.5, "few"],
    "scrub": ["soon", -1, True],
    "hub.namespace": ["acme/models", 7, None],
    "hub.allow": ["acme/*", 7, [1]],
    "hub.deny": ["acme/*", 7, [1]],
    "hub.base": ["acme", "acme/base@main", 7],
    "hub.poll": [0, "0.5s", "often", None],
    "hub.spool": [-1, "much", None],
    "hub.bandwidth": [-1, "much", None],
    "hub.stream": ["perhaps", 7],
    "hub.publish_to": ["merged", "org/merged@main", "https://hub/org/merged", 7],
    "hub.publish_private_sources": ["perhaps", 7],
    "hub.write_token": [7, None],
    "hub.webhook_secret": [7, None],
    "metrics.file": [7, "/run/mergd/metrics.txt", "/run/mergd/"],
    "metrics.listen": [
        7,
        None,
        9190,
        ":9190",
        "0.0.0.0:9190",
        "[::]:9190",
        "10.0.0.1:9190",
        "127.0.0.2:9190",
        "localhost",
        "localhost:0",
        "localhost:65536",
        "localhost.evil.example:9190",
        "127.0.0.1:\uff19\uff11",
        "http://localhost:9190",
        "::1:9190",
        "localhost:9190\n",
    ],
    "archive.adapters": ["perhaps", 7],
    "archive.full": [-1, "much"],
    "gates": ["one", 7, [1]],
    "gate.NAME.command": ["/bin/true", 7, [1]],
    "gate.NAME.socket": ["run/gate.sock", 7, None],
    "gate.NAME.deadline": [0, "soon", -1, "inf", None],
    "gate.NAME.drop": [-0.01, "much", "nan", True, None],
    "gate.NAME.total_drop": [-0.01, "much", "inf", True, None],
    "gate.NAME.mode": ["hold", "", None],
    "hooks": ["one", 7, [1]],
    "hook.NAME.command": ["restart", [7], ["bin/restart"], 7],
    "hook.NAME.socket": ["run/hook.sock", 7],
    "hook.NAME.url": ["example.org/hook", "ftp://example.org", "http://", "http://a b", "http://a:x/", "http://é/", 7],
    "hook.NAME.secret": [7, None],
    "hook.NAME.retry": [-1, "soon", None],
    "hook.NAME.timeout": [0, -1, "soon", None],
}


def test_the_table_of_bad_values_has_every_key() -> None:
    assert BAD.keys() == keys().keys()


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_a_bad_value_is_told_of_by_its_key(least: Values, key: str, value: Any) -> None:
    with pytest.raises(Misconfigured) as raised:
        validate(least | nested(key, value), "mergd.toml")
    assert str(raised.value).startswith(f"mergd.toml: {key}")
    assert key in raised.value.hint


def nested(key: str, value: Any) -> Values:
    """Return a key with its value as the file has it: one with a point stands in a table, perhaps a person's own."""
    *tables, name = key.split(".")
    found = {name: value}
    for table in reversed(tables):
        found = {table: found}
    return found


ONE_WAY = "hook.NAME: Value error, give one of command, socket and url"


@pytest.mark.parametrize(
    "hook",
    [{}, {"retry": "1h"}, {"command": ["a"], "url": "http://a"}, {"socket": "/a", "url": "http://a"}],
)
def test_a_hook_is_told_in_one_way(least: Values, hook: Values) -> None:
    with pytest.raises(Misconfigured, match=ONE_WAY):
        validate(least | {"hook": {"NAME": hook}}, "mergd.toml")


def test_only_a_webhook_is_signed(least: Values) -> None:
    with pytest.raises(Misconfigured, match="secret signs what is posted to a url"):
        validate(least | {"hook": {"NAME": {"command": ["a"], "secret": "key"}}}, "mergd.toml")


@pytest.mark.parametrize("name", ["a b", "", "../x", "a" * 41, "é"])
def test_a_hooks_name_can_be_a_files(least: Values, name: str) -> None:
    with pytest.raises(Misconfigured, match="hook"):
        validate(least | {"hook": {name: {"command": ["a"]}}}, "mergd.toml")


def test_a_wrong_address_is_not_shown(least: Values) -> None:
    with pytest.raises(Misconfigured) as raised:
        validate(least | {"hook": {"NAME": {"url": "ftp://canary@example.org/canary"}}}, "mergd.toml")
    assert "canary" not in f"{raised.value} {raised.value.hint}"


GOOD: list[tuple[str, Any, Any]] = [
    ("quiet", "5s", 5.0),
    ("quiet", "250ms", 0.25),
    ("quiet", "1.5m", 90.0),
    ("quiet", 7, 7.0),
    ("rescan", "12h", 43200.0),
    ("keep_within", "7d", 604800.0),
    ("keep_within", " 2 d ", 172800.0),
    ("share", 2, 2.0),
    ("weight_range", [1, 2.5], (1.0, 2.5)),
    ("memory", "256MB", 256_000_000),
    ("disk", "2TB", 2 * 10**12),
    ("disk", 0, 0),
    ("memory", "1GiB", 2**30),
    ("shard_size", "5GB", 5_000_000_000),
    ("shard_size", 1000, 1000),
    ("gates", ["a", "b"], ("a", "b")),
    ("out_dtype", "bfloat16", "bfloat16"),
    ("limits", {"norm": False, "per_day": False}, Limits(norm=0, per_day=0)),
    ("limits", {"cosine": -0.25, "share": 0.5}, Limits(cosine=-0.25, share=0.5)),
]


@pytest.mark.parametrize("name", Limits.model_fields)
def test_a_limit_has_the_same_default_with_and_without_settings(name: str) -> None:
    assert getattr(Sane(), name) == getattr(Limits(), name)


def test_a_limit_on_the_command_line_is_a_key_with_a_point() -> None:
    assert values_of(["limits.norm=2", "limits.share=false", "alpha=0.4", "beta.gamma=1", "quiet=5s"]) == {
        "parameters": {"alpha": 0.4, "beta.gamma": 1},
        "limits": {"norm": 2, "share": False},
        "quiet": "5s",
    }


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", None),
        ("127.0.0.1:9190", ("127.0.0.1", 9190)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_a_port_of_this_machine_is_read(least: Values, text: str, address: tuple[str, int] | None) -> None:
    assert validate(least | {"metrics": {"listen": text}}, "").metrics.address == address


@pytest.mark.parametrize("lacking", ["metrics", "namespace"])
def test_calls_of_the_hub_need_a_port_and_a_namespace(least: Values, lacking: str) -> None:
    hub = {"webhook_secret": "hook"} | ({} if lacking == "namespace" else {"namespace": "acme"})
    metrics = {} if lacking == "metrics" else {"metrics": {"listen": "localhost:9190"}}
    with pytest.raises(Misconfigured, match=r"hub\.webhook_secret needs metrics\.listen") as raised:
        validate(least | {"hub": hub} | metrics, "mergd.toml")
    assert raised.value.hint == "set both, or leave hub.webhook_secret empty"


@pytest.mark.parametrize(("key", "value", "expected"), GOOD)
def test_a_good_value_is_read_as_people_write_it(least: Values, key: str, value: Any, expected: Any) -> None:
    assert getattr(validate(least | {key: value}, ""), key) == expected


def test_places_are_made_absolute(least: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = validate(least | {"watch": "drop/../in", "state": "~/state"}, "")
    assert (found.watch, found.state) == (tmp_path / "in", tmp_path / "home" / "state")


@pytest.mark.parametrize("key", ["base_model", "watch", "state"])
def test_what_has_no_default_must_be_there(least: Values, key: str) -> None:
    del least[key]
    with pytest.raises(Misconfigured, match=key):
        validate(least, "mergd.toml")


def test_an_unknown_key_is_named_with_those_that_are_known(least: Values) -> None:
    with pytest.raises(Misconfigured, match="quite") as raised:
        validate(least | {"quite": "5s"}, "mergd.toml")
    assert all(key in raised.value.hint for key in keys())


def test_every_setting_is_described() -> None:
    assert all(len(field.description or "") > 20 for field in keys().values())


def test_the_settings_are_a_value(least: Values) -> None:
    assert validate(least, "") == validate(dict(least), "")
    with pytest.raises(ValueError, match="frozen"):
        validate(least, "").quiet = 1.0


# --------------------------------------------------------------------------------------------- places within places


@pytest.mark.parametrize(
    ("watch", "state", "base"),
    [
        ("x", "x", "b"),
        ("x", "x/state", "b"),
        ("x/watch", "x", "b"),
        ("b/watch", "s", "b"),
        ("w", "b/state", "b"),
        ("w", "s", "w/b"),
        ("w", "s", "s/b"),
        ("link", "x/state", "b"),
        ("w", "s", "w"),
    ],
)
def test_watch_state_and_base_must_not_contain_one_another(tmp_path: Path, watch: str, state: str, base: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("x")
    (tmp_path / base).mkdir(parents=True, exist_ok=True)
    values = {"base_model": str(tmp_path / base), "watch": tmp_path / watch, "state": tmp_path / state}
    with pytest.raises(Misconfigured, match="lies in"):
        validate(values, "")


def test_neighbours_with_like_names_do_not_contain_one_another(tmp_path: Path) -> None:
    (tmp_path / "m-base").mkdir()
    places = {"base_model": str(tmp_path / "m-base"), "watch": tmp_path / "m", "state": tmp_path / "m-state"}
    assert validate(places, "").watch == tmp_path / "m"


# ----------------------------------------------------------------------------------------------------- the file


def test_what_init_writes_is_read_back_as_it_was(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, quiet="0.5s", gates=["a"], parameters={"alpha": 0.25}, keep_last=3)
    found = read_settings(merge.config)
    assert (found.quiet, found.gates, found.keep_last) == (0.5, ("a",), 3)
    assert found.parameters == {"alpha": 0.25, "variant": "block", "others": "sum"}
    text = merge.config.read_text()
    assert all(re.search(rf"^(# )?{key} = |^\[{key}\]", text, re.MULTILINE) for key in Settings.model_fields)


def test_tables_with_names_are_written_down_and_read_back(least: Values, tmp_path: Path) -> None:
    gates = {"a": {"command": ["/bin/a", "it's"], "deadline": "2h"}, "b-2": {"socket": "/run/b", "mode": "observe"}}
    settings = validate(least | {"gate": gates}, "")
    config = tmp_path / "mergd.toml"
    config.write_text(config_text(settings))
    assert read_settings(config) == settings
    assert list(settings.gate) == ["a", "b-2"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "either command or socket"),
        ({"command": ["/bin/true"], "socket": "/run/gate"}, "either command or socket"),
        ({"command": ["true"]}, "no absolute path"),
    ],
)
def test_a_gate_is_one_program(least: Values, table: Values, words: str) -> None:
    with pytest.raises(Misconfigured, match=f"gate.mine: .*{words}"):
        validate(least | {"gate": {"mine": table}}, "mergd.toml")


@pytest.mark.parametrize("name", ["", "a b", "a.b", "ü", "a" * 41])
def test_a_gates_name_can_stand_in_a_units_name(least: Values, name: str) -> None:
    with pytest.raises(Misconfigured, match=r"mergd\.toml: gate"):
        validate(least | {"gate": {name: {"command": ["/bin/true"]}}}, "mergd.toml")


def test_no_two_gates_have_one_name(least: Values) -> None:
    with pytest.raises(Misconfigured, match="gates is called mine too"):
        validate(least | {"gate": {"mine": {"command": ["/bin/true"]}}, "gates": ["mine"]}, "mergd.toml")


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "ünïcode", "new\nline", "tab\t"])
def test_any_place_can_be_written_down(tmp_path: Path, name: str) -> None:
    settings = validate({"base_model": "org/name", "watch": tmp_path / name, "state": tmp_path / "state"}, "")
    config = tmp_path / "mergd.toml"
    config.write_text(config_text(settings))
    assert read_settings(config) == settings


@pytest.mark.parametrize("data", [b"quiet = \n", b"\xff\xfe", b"[[[", b"a = 1\na = 2\n"])
def test_what_is_no_toml_is_misconfigured(tmp_path: Path, data: bytes) -> None:
    config = tmp_path / "mergd.toml"
    config.write_bytes(data)
    with pytest.raises(Misconfigured, match="no TOML"):
        read_settings(config)


def test_a_file_that_may_not_be_read_is_not_permitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "mergd.toml"
    config.touch()
    monkeypatch.setattr(Path, "open", _not_permitted)
    with pytest.raises(NotPermitted, match=str(config)):
        read_settings(config)


def _not_permitted(*arguments: object) -> None:
    raise PermissionError(13, "Permission denied")


# ------------------------------------------------------------------------------------------------- owner and mode


def groups(monkeypatch: pytest.MonkeyPatch, *members: str, name: str = "me") -> None:
    """Let every user be `me`, and every group bear this name and have these members besides."""
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="me", pw_gid=os.getegid()))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name=name, gr_gid=gid, gr_mem=list(members)))


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o602])
def test_a_configuration_that_others_may_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    groups(monkeypatch, "me", "somebody")
    config = tmp_path / "mergd.toml"
    config.touch()
    config.chmod(mode)
    with pytest.raises(Misconfigured, match="writable by others") as raised:
        check_owner(config)
    assert f"chmod go-w {config}" in raised.value.hint


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
@pytest.mark.parametrize("depth", [0, 1])
def test_so_is_one_in_a_folder_that_others_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, depth: int
) -> None:
    groups(monkeypatch, name="team")
    folders = [tmp_path / "a", tmp_path / "a" / "b"]
    folders[1].mkdir(parents=True)
    config = folders[1] / "mergd.toml"
    config.touch(0o644)
    folders[depth].chmod(mode)
    with pytest.raises(Misconfigured, match="writable by others"):
        check_owner(config)


def test_a_group_of_the_owner_alone_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(monkeypatch)
    config = tmp_path / "mergd.toml"
    config.touch()
    config.chmod(0o664)
    check_owner(config)
    config.chmod(0o666)
    with pytest.raises(Misconfigured, match="writable by others"):
        check_owner(config)


@pytest.mark.parametrize("at", ["file", "folder"])
def test_a_configuration_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    config = tmp_path / "a" / "mergd.toml"
    config.parent.mkdir()
    config.touch(0o644)
    somebody = os.stat(tmp_path).st_uid + 1000
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        found = real(path, **options)
        theirs = path == (config if at == "file" else config.parent)
        return os.stat_result((*found[:4], somebody, *found[5:])) if theirs else found

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(Misconfigured, match=f"belongs to user {somebody}"):
        check_owner(config)


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "mergd.toml").touch(0o644)
    (tmp_path / "mergd.toml").symlink_to("open/mergd.toml")
    with pytest.raises(Misconfigured, match="writable by others"):
        check_owner(tmp_path / "mergd.toml")


def test_a_private_configuration_under_the_sticky_folder_of_root_is_good(tmp_path: Path) -> None:
    config = tmp_path / "mergd.toml"
    config.touch(0o600)
    check_owner(config)  # /tmp is 1777 and root's


def test_nothing_is_read_before_the_owner_was_looked_at(tmp_path: Path) -> None:
    config = tmp_path / "mergd.toml"
    config.write_text("no toml at all")
    config.chmod(0o666)
    with pytest.raises(Misconfigured, match="writable by others"):
        read_settings(config)


# ------------------------------------------------------------------------------------------ where it is looked for


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for /etc/mergd, with a configuration in each place where one is looked for."""
    folder = tmp_path / "etc"
    folder.mkdir()
    monkeypatch.setattr(module, "SYSTEM_FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGD_CONFIG", str(tmp_path / "named.toml"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for path in (folder / "mergd.toml", folder / "vision.toml", tmp_path / "named.toml", tmp_path / "mergd.toml"):
        path.touch()
    (tmp_path / "given.toml").touch()
    return folder


def test_the_configuration_is_looked_for_in_order(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_config(Path("given.toml"), None) == Path("given.toml")
    assert find_config(None, "vision") == system / "vision.toml"
    assert find_config() == system.parent / "named.toml"
    monkeypatch.delenv("MERGD_CONFIG")
    assert find_config() == Path("mergd.toml")
    Path("mergd.toml").unlink()
    assert find_config() == system / "mergd.toml"


def test_root_never_takes_the_one_of_the_folder_it_stands_in(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MERGD_CONFIG")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert find_config() == system / "mergd.toml"
    (system / "mergd.toml").unlink()
    with pytest.raises(Misconfigured) as raised:
        find_config()
    assert "-c mergd.toml" in raised.value.hint


def test_a_configuration_that_is_not_there_is_named(system: Path) -> None:
    for config, name in ((Path("no.toml"), None), (None, "no")):
        with pytest.raises(Misconfigured, match=r"no\.toml"):
            find_config(config, name)


def test_a_file_and_a_name_at_once_are_one_too_many(system: Path) -> None:
    with pytest.raises(Misconfigured, match="both -c and -n"):
        find_config(Path("given.toml"), "vision")


@pytest.mark.parametrize("name", ["../passwd", "a/b", "", "a b", "/x"])
def test_a_name_is_no_path(system: Path, name: str) -> None:
    with pytest.raises(Misconfigured, match="is no name"):
        find_config(None, name)


def test_init_writes_where_the_others_look(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new_config(Path("x.toml"), None) == Path("x.toml")
    assert new_config(None, "vision") == system / "vision.toml"
    assert new_config(None, None) == system.parent / "named.toml"
    monkeypatch.delenv("MERGD_CONFIG")
    assert new_config(None, None) == Path("mergd.toml")
