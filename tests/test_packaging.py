"""What is installed: the wheel against the folders, a clean environment, and somebody else's plugins in it."""

import configparser
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import repository
import torch
from support.merges import Sandbox, set_in
from support.models import Model, load_model, save_lone, save_model, task_vector, tiny_base, weight_errors

PROJECT = tomllib.loads((repository.ROOT / "pyproject.toml").read_text())
DATA = (".conf", ".service", ".toml", ".yml", ".json")  # in systemd/
WHEEL = ("-m", "build", "--wheel", "--outdir", "wheels")


def run(*words: object, at: Path, **environment: str) -> str:
    """Run a command to its good end in folder `at`, without what could lead to this checkout; returns its output."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MERGD", "VIRTUAL"))}
    done = subprocess.run(
        [str(word) for word in words], cwd=at, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# -------------------------------------------------------------------------------------------------- list and folders


def test_the_list_of_packages_is_that_of_the_folders_with_python() -> None:
    folders = {path.parent for path in repository.module_files()}
    expected = sorted(".".join(("mergd", *folder.parts)) for folder in folders)
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == expected


def test_every_folder_with_python_says_what_it_holds() -> None:
    modules = set(repository.module_files())
    assert {path.parent / "__init__.py" for path in modules} <= modules


def test_the_root_holds_no_python_but_the_packages_own() -> None:
    names = {path.name for path in repository.module_files() if path.parent == Path()}
    assert names == {"__init__.py", "__main__.py"}


def test_the_type_checkers_links_are_those_of_the_package() -> None:
    links = list((repository.ROOT / ".types" / "mergd").iterdir())
    assert {link.name: link.resolve() for link in links} == {link.name: repository.ROOT / link.name for link in links}
    assert {link.name for link in links} >= {"__init__.py", "__main__.py", "daemon", "plugins", "state"}


@pytest.mark.parametrize("group", ["formats", "rules", "sources", "gates"])
def test_every_plugin_of_ours_is_an_entry_point(group: str) -> None:
    points = PROJECT["project"]["entry-points"][f"mergd.{group}"].values()
    registered = {point.split(":")[0].rsplit(".", 1)[1] for point in points}
    siblings = {
        path.parts[2].removesuffix(".py") for path in repository.module_files() if path.parts[:2] == ("plugins", group)
    }
    siblings = {name for name in siblings if not name.startswith("_") or name == "__init__"}  # what they share
    assert registered == siblings - {
        "__init__",
        "interface",
        "batch_interface",
        "surveys",
        "hub",
        *("program", "answers", "tolerance"),
    }  # the last ones: the base model's source, and gates of the configuration, which are not called by an entry point


# ------------------------------------------------------------------------------------------------------------- wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the repository's files."""
    return build(copy_of_the_repository(tmp_path_factory.mktemp("source")))


def copy_of_the_repository(target: Path) -> Path:
    """Copy the repository's files, without what was made in the checkout."""
    for path in repository.files():
        (target / path.parent).mkdir(parents=True, exist_ok=True)
        shutil.copy(repository.ROOT / path, target / path, follow_symlinks=False)
    return target


def build(source: Path) -> Path:
    """Build a project's wheel with this environment's setuptools, or with one of its own if that is too old."""
    own = int(version("setuptools").split(".")[0]) >= 77
    run(sys.executable, *WHEEL, *(["--no-isolation"] if own else []), at=source)
    (built,) = (source / "wheels").iterdir()
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        (manual,) = [name for name in found if ".data/" in name]
        assert archive.read(manual) == (repository.ROOT / "docs" / "man" / "mergd.1").read_bytes()
    assert manual.endswith(".data/data/share/man/man1/mergd.1")
    found.remove(manual)
    data = [path for path in repository.files() if path.parts[0] == "systemd" and path.suffix in DATA]
    assert len(data) >= 2
    assert found == {f"mergd/{path}" for path in (*repository.module_files(), *data, Path("py.typed"))}


def test_the_wheel_carries_the_licence_the_command_and_the_plugins(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split(".dist-info/")[1]: name for name in archive.namelist() if ".dist-info/" in name}
        points = configparser.ConfigParser()
        points.read_string(archive.read(names["entry_points.txt"]).decode())
        metadata = archive.read(names["METADATA"]).decode()
    assert "licenses/LICENSE" in names
    assert "License-Expression: Apache-2.0" in metadata
    assert points["console_scripts"]["mergd"] == "mergd.daemon.cli:main"
    for group, expected in PROJECT["project"]["entry-points"].items():
        assert dict(points[group]) == expected


# ------------------------------------------------------------------------------------------------- clean environment


class Clean:
    """An environment that holds the wheel, what it requires, and somebody else's plugins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False, symlinks=True)

    def program(self, name: str) -> Path:
        """Return the path of a program in it."""
        return self.folder / "bin" / name

    def install(self, *wheels: Path) -> None:
        """Install wheels and what they require, in the versions that development uses."""
        run(
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.program("python")),
            *("install", "--quiet", "--no-compile", "-c", repository.ROOT / "constraints.txt", *wheels),
            at=self.folder,
        )

    def modules(self) -> set[str]:
        """Return the top-level names that are installed."""
        (packages,) = self.folder.glob("lib/python*/site-packages")
        return {path.name.split(".")[0] for path in packages.iterdir() if path.suffix != ".dist-info"}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[Clean]:
    """A clean environment; it is large, so it does not stay."""
    root = tmp_path_factory.mktemp("clean")
    environment = Clean(root / "environment")
    theirs = shutil.copytree(repository.ROOT / "tests" / "third_party", root / "theirs")
    environment.install(wheel, build(theirs))
    yield environment
    shutil.rmtree(root)


@pytest.mark.parametrize("words", [("mergd",), ("python", "-m", "mergd")], ids=" ".join)
def test_the_installed_command_has_help(clean: Clean, tmp_path: Path, words: tuple[str, ...]) -> None:
    program, *rest = words
    out = run(clean.program(program), *rest, "--help", at=tmp_path)
    assert "mergd [OPTIONS] COMMAND" in out
    for command in ("init", "run", "rollback"):
        assert f" {command} " in out


def test_the_installation_takes_no_name_but_its_own(clean: Clean, tmp_path: Path) -> None:
    assert "mergd" in clean.modules()
    assert not clean.modules() & {"daemon", "state", "plugins", "systemd", "tests", "benchmarks", "docs"}
    script = "import json, mergd, mergd.state.history as h; print(json.dumps([mergd.__file__, mergd.__version__]))"
    file, number = json.loads(run(clean.program("python"), "-c", script, at=tmp_path))
    assert Path(file).is_relative_to(clean.folder)
    assert number == PROJECT["project"]["version"]


def test_the_installed_requirements_are_those_that_it_states(clean: Clean, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "--python", clean.program("python"), "check", at=tmp_path)


# --------------------------------------------------------------------------------------------- somebody else's plugins


class Theirs:
    """A merge by somebody else's rule, through the installed command."""

    def __init__(self, clean: Clean, root: Path) -> None:
        self.clean = clean
        self.merge = Sandbox(root, tiny_base())
        self.news = root / "news"
        save_model(self.merge.base, self.merge.model)
        self.merge.watch.mkdir()

    def mergd(self, command: str, *arguments: object) -> str:
        """Run an installed `mergd COMMAND`; returns what it printed."""
        words = (command, "-c", self.merge.config, *arguments)
        return run(self.clean.program("mergd"), *words, at=self.merge.root, THEIR_NEWS=str(self.news))

    def told(self) -> list[int]:
        """Return the versions that their hook was told of, in order."""
        return [json.loads(line)["version"] for line in self.news.read_text().splitlines()]

    def drop_their_format(self, name: str, seed: int, done: bool = True) -> Path:
        """Drop a checkpoint in their format, its weights dealt out to two files."""
        model, aside = self.merge.fine_tuned(seed), self.merge.root / f"aside-{name}"
        aside.mkdir()
        for part in range(2):
            save_lone(aside / f"part-{part}.safetensors", {k: model[k] for k in list(model)[part::2]})
        if done:
            (aside / "done").touch()
        return aside.rename(self.merge.watch / name)


@dataclass(frozen=True)
class Ran:
    """What their merge looked like after its first run, in which their hook could not tell its news."""

    theirs: Theirs
    rows: dict[str, dict[str, Any]]  # of `mergd list --json`, by name
    log: list[dict[str, Any]]


@pytest.fixture(scope="module")
def ran(clean: Clean, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run of a merge with their rule, gate and hook, over a checkpoint of each fate."""
    made = Theirs(clean, tmp_path_factory.mktemp("theirs"))
    merge = made.merge
    places = ("--base", merge.base, "--watch", merge.watch, "--state", merge.state)
    made.mergd("init", *places, "--rule", "their_rule")
    set_in(merge.config, quiet="0", gates='["their_gate"]', hooks='["their_hook"]')
    merge.drop("a", 1)
    merge.drop("b", 2)
    merge.drop("unwanted", 3)
    made.drop_their_format("c.mycheckpoint", 4)
    made.drop_their_format("d.mycheckpoint", 5, done=False)
    made.mergd("run", "--once")
    rows = {row["name"]: row for row in json.loads(made.mergd("list", "--json"))}
    return Ran(made, rows, json.loads(made.mergd("log", "--json")))


def test_their_gate_refuses_with_its_reason_and_lets_the_others_pass(ran: Ran) -> None:
    rows = ran.rows
    assert (rows["a"]["state"], rows["b"]["state"], rows["unwanted"]["state"]) == ("folded", "folded", "refused")
    assert [reason["code"] for reason in rows["unwanted"]["reasons"]] == ["unwanted"]


def test_a_checkpoint_in_their_format_is_folded_once_it_is_complete(ran: Ran) -> None:
    assert ran.rows["c.mycheckpoint"]["state"] == "folded"
    assert ran.rows["d.mycheckpoint"]["state"] == "settling"
    assert "file done" in ran.rows["d.mycheckpoint"]["waits_for"]


def test_their_rule_reads_what_it_says(ran: Ran) -> None:
    merge = ran.theirs.merge
    assert {entry["rule"] for entry in ran.log} == {"their_rule"}
    assert [entry["checkpoint"]["name"] for entry in reversed(ran.log)][:2] == ["a", "b"]
    taus = [task_vector(merge.fine_tuned(seed), merge.model) for seed in (1, 2)]
    published = task_vector(load_model(merge.store.model(2)), merge.model)
    assert max(weight_errors(published, agreed_mean(taus)).values()) < 1e-5


def agreed_mean(taus: list[Model]) -> Model:
    """Return the mean of the task vectors where their signs agree, else zero."""
    return {
        name: torch.stack([tau[name] for tau in taus]).mean(0)
        * (torch.stack([tau[name].sign() for tau in taus]).sum(0).abs() == len(taus))
        for name in taus[0]
    }


def test_their_hook_is_told_again_and_in_order_of_what_it_failed_to_take(ran: Ran) -> None:
    theirs, versions = ran.theirs, [entry["version"] for entry in reversed(ran.log)]
    assert not theirs.news.exists()
    theirs.news.touch()
    theirs.mergd("rollback", "v1")
    assert theirs.told() == [*versions, 1]


def test_their_rule_is_listed_with_what_it_keeps(clean: Clean, tmp_path: Path) -> None:
    found = json.loads(run(clean.program("mergd"), "rules", "their_rule", "--json", at=tmp_path))
    (rule,) = found["rules"]
    assert (rule["package"], rule["error"]) == ("their-plugins 1.0", None)
    assert rule["does"].startswith("Reads `factor` times the mean task vector")
    assert (rule["multiples"]["square"], rule["exact_removal"]) == (2.0, True)


def test_all_of_their_plugins_are_found_by_name(clean: Clean, tmp_path: Path) -> None:
    script = """
import json
from mergd.plugins.registry import load, names
groups = ("formats", "rules", "sources", "gates", "hooks")
print(json.dumps({group: [name for name in names(group) if load(group, name).__module__ == "their_plugins"] for group in groups}))
"""
    found = json.loads(run(clean.program("python"), "-c", script, at=tmp_path))
    assert found == {group: [f"their_{group[:-1]}"] for group in found}
    assert len(found) == 5
