"""The examples of the pages on writing plugins: their files are installed as they stand, and a real daemon uses them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import repository
import torch
from support.commands import Ended, mergd
from support.installing import install, on_the_path
from support.merges import Sandbox, set_in
from support.models import Model, norm, save_lone, save_model, task_vector, tiny_base, weight_errors
from support.pages import commands, write_files

from mergd.plugins.sources.directory import Directory
from mergd.plugins.sources.interface import Scan

DOCS = repository.ROOT / "docs"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def rules_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files of the page on rules; beside it, `site`, where they are installed."""
    project = write_files(DOCS / "writing-a-rule.md", tmp_path_factory.mktemp("rules") / "project")
    install(project, project.with_name("site"))
    return project


@pytest.fixture
def my_rules(rules_package: Path) -> Iterator[Path]:
    """Have the page's rules found."""
    with on_the_path(rules_package.with_name("site")):
        yield rules_package


@pytest.fixture(scope="module")
def plugins_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the files of the page on other plugins were installed."""
    project = write_files(DOCS / "writing-plugins.md", tmp_path_factory.mktemp("plugins") / "project")
    return install(project, project.with_name("site"))


@pytest.fixture
def my_plugins(plugins_site: Path) -> Iterator[None]:
    """Have the page's plugins found."""
    with on_the_path(plugins_site):
        yield


# -------------------------------------------------------------------------------------------------------------- rules


def typed(page: Path, folder: Path) -> list[Ended]:
    """Type what a page says, but for what installs and tests; returns how each command ended."""
    words = [line for line in commands(page) if line[0] in ("mergd", "mkdir")]
    ended = []
    for program, *rest in words:
        if program == "mkdir":
            (folder / rest[0]).mkdir()
        else:
            ended.append(mergd(*rest, at=folder))
    return ended


@pytest.mark.usefixtures("my_rules")
def test_what_the_page_on_rules_has_one_type_does_what_it_says(tmp_path: Path) -> None:
    base = tiny_base()
    save_model(tmp_path / "path" / "to" / "base", base)
    listed, made, ran = typed(DOCS / "writing-a-rule.md", tmp_path)
    assert (listed.code, made.code, ran.code) == (0, 0, 0)
    assert "Reads the sum of the task vectors, divided by the square root" in listed.out
    assert "strength: float, default 1.0" in listed.out
    assert "my-rules 1.0" in listed.out
    merge = Sandbox(tmp_path, base)
    taus = []
    for seed in (1, 2, 3):
        place = tmp_path / f"aside-{seed}"
        save_model(place, merge.fine_tuned(seed))
        (place / "READY").touch()
        place.rename(tmp_path / "drop" / f"seed-{seed}")
        taus.append(task_vector(merge.fine_tuned(seed), base))
    assert mergd("run", "--once", "-c", "mergd.toml", at=tmp_path).code == 0
    published = task_vector(merge.published(), base)
    expected = {name: 0.5 * sum_of(taus, name) / 3**0.5 for name in taus[0]}
    assert max(weight_errors(published, expected).values()) < TOLERANCE


def sum_of(taus: list[Model], name: str) -> torch.Tensor:
    """Return the sum of one weight's task vectors."""
    return torch.stack([tau[name] for tau in taus]).sum(0)


def steady(taus: list[Model]) -> Model:
    """Return mean x mean^2 / mean square."""
    stacked = {name: torch.stack([tau[name] for tau in taus]) for name in taus[0]}
    return {name: t.mean(0) ** 3 / (t**2).mean(0) for name, t in stacked.items()}


def recent(taus: list[Model]) -> Model:
    """Return sum_i 0.25 x 0.75^(T-i) tau_i."""
    last = len(taus) - 1
    faded = [{name: 0.25 * 0.75 ** (last - i) * tau[name] for name in tau} for i, tau in enumerate(taus)]
    return {name: sum_of(faded, name) for name in taus[0]}


def even(taus: list[Model]) -> Model:
    """Return the mean direction times the mean norm."""
    norms = [norm(tau) for tau in taus]
    directions = [{name: tau[name] / length for name in tau} for tau, length in zip(taus, norms, strict=True)]
    return {name: sum_of(directions, name) * sum(norms) / len(taus) ** 2 for name in taus[0]}


@pytest.mark.usefixtures("my_rules")
@pytest.mark.parametrize("formula", [steady, recent, even], ids=lambda formula: formula.__name__)
def test_the_pages_other_rules_publish_what_they_say(new_merge: Any, formula: Any) -> None:
    merge: Sandbox = new_merge(rule=formula.__name__)
    taus = []
    for seed in (1, 2, 3):
        merge.drop(f"seed-{seed}", merge.fine_tuned(seed))
        merge.fold_all()
        taus.append(task_vector(merge.fine_tuned(seed), merge.model))
    published = task_vector(merge.published(), merge.model)
    assert max(weight_errors(published, formula(taus)).values()) < TOLERANCE


@pytest.mark.usefixtures("my_rules")
def test_the_pages_rules_are_listed_as_what_they_are(tmp_path: Path) -> None:
    found = {rule["rule"]: rule for rule in mergd("rules", "--json", at=tmp_path).json["rules"]}
    mine = {name: found[name] for name in ("damped", "steady", "recent", "even", "median")}
    assert [rule["error"] for rule in mine.values()] == [None] * 5
    assert [rule["exact_removal"] for rule in mine.values()] == [True, True, False, True, None]
    assert [rule["order_matters"] for rule in mine.values()] == [False, False, True, False, None]
    assert [rule["passes"] for rule in mine.values()] == [0, 0, 0, 1, None]
    assert [rule["remerge_only"] for rule in mine.values()] == [False, False, False, False, True]
    assert [rule["multiples"].get("square") for rule in mine.values()] == [1, 2, 1, 1, None]


@pytest.mark.usefixtures("my_rules")
def test_the_pages_rule_for_remerges_merges(merge: Sandbox) -> None:
    taus = []
    for seed in (1, 2, 3):
        merge.drop(f"seed-{seed}", seed)
        taus.append(task_vector(merge.fine_tuned(seed), merge.model))
    merge.fold_all()
    done = merge.mergd("remerge", "--rule", "median")
    assert done.code == 0, done.err
    medians = {name: torch.stack([tau[name] for tau in taus]).median(0).values for name in taus[0]}
    assert max(weight_errors(task_vector(merge.published(), merge.model), medians).values()) < TOLERANCE


def test_the_pages_own_tests_pass(my_rules: Path) -> None:
    path = [str(repository.ROOT / "tests"), str(my_rules.with_name("site")), os.environ.get("PYTHONPATH", "")]
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_rules.py"]
    done = subprocess.run(
        words,
        cwd=my_rules,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


# ------------------------------------------------------------------------------------------------------ other plugins


@pytest.mark.usefixtures("my_plugins")
def test_the_pages_plugins_work_together_in_a_daemon(tmp_path: Path) -> None:
    base = {name: 25 * tensor for name, tensor in tiny_base().items()}
    merge = Sandbox(tmp_path, base)
    save_model(tmp_path / "path" / "to" / "base", base)
    (tmp_path / "drop").mkdir()
    (made,) = typed(DOCS / "writing-plugins.md", tmp_path)
    assert made.code == 0, made.err
    set_in(merge.config, quiet="0", quiet_unsure="0", quiet_network="0")
    places = [
        save_model(tmp_path / "elsewhere" / "plain", merge.fine_tuned(1, 2.5)),
        save_parts(tmp_path / "elsewhere" / "split.parts", merge.fine_tuned(2, 2.5), done=True),
        save_parts(tmp_path / "elsewhere" / "half.parts", merge.fine_tuned(3, 2.5), done=False),
        save_model(tmp_path / "elsewhere" / "loud", merge.fine_tuned(4, 11.0)),
        save_model(tmp_path / "elsewhere" / "huge", with_one_of(110.0, merge.fine_tuned(5, 0.5))),
    ]
    (tmp_path / "drop" / "queue.txt").write_text("\n".join(map(str, places)) + "\n")
    with merge.running("run", "--once", POINTER=str(tmp_path / "pointer")) as command:
        assert command.ended().code == 0, command.err
    rows = {row["name"]: row for row in merge.mergd("list", "--json").json}
    states = {name: row["state"] for name, row in rows.items()}
    assert states == {
        "plain": "folded",
        "split.parts": "folded",
        "half.parts": "settling",
        "loud": "held",
        "huge": "refused",
    }
    codes = {name: [reason["code"] for reason in row["reasons"]] for name, row in rows.items() if row["reasons"]}
    assert codes == {"loud": ["loud"], "huge": ["huge"]}
    assert "file done" in rows["half.parts"]["waits_for"]
    told = json.loads((tmp_path / "pointer").read_text())
    assert told["version"] == 2
    assert told["model"] == str(merge.store.model(2))


def test_a_source_that_fails_is_trouble_and_a_later_scan_goes_on(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge.drop("a", 1)
    scan, fails = Directory.scan, ["at first"]

    def scan_or_fail(self: Directory, mark: str | None = None) -> Scan:
        if fails:
            raise ValueError(fails.pop())
        return scan(self, mark)

    monkeypatch.setattr(Directory, "scan", scan_or_fail)
    with merge.loop() as loop:
        loop.post("rescan")
        loop.turn()
        assert loop.trouble == "the source directory failed: ValueError: at first"
        loop.post("rescan")
        loop.run(until=loop.idle)
        assert loop.trouble == ""
    assert merge.states() == {"a": "folded"}


def with_one_of(number: float, model: Model) -> Model:
    """Return a model in which one number of a bias is another."""
    model["layer.matrix.bias"][0] = number
    return model


def save_parts(folder: Path, model: Model, done: bool) -> Path:
    """Write a checkpoint as the page's format has it."""
    folder.mkdir(parents=True)
    for part in range(2):
        names = list(model)[part::2]
        save_lone(folder / f"part-{part}.safetensors", {f"module.{name}": model[name] for name in names})
    if done:
        (folder / "done").touch()
    return folder
