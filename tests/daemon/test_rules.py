"""What is said of the installed rules, for a base model and without one, whatever is wrong with one of them."""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support.commands import mergd, start_forking
from support.installing import install, on_the_path
from support.merges import Sandbox, make_merge
from support.models import CONFIG, save_model, tiny_base
from torch import Tensor

from mergd.daemon import answers_rules, display
from mergd.daemon import asking_rules as asking
from mergd.daemon.base import open_base, outline
from mergd.daemon.method import method_of
from mergd.daemon.publishing import model_bytes, slots_bytes, spilled_bytes, version_bytes
from mergd.daemon.rules import FORMS, UNKNOWN, alike, describe, patterns
from mergd.plugins.registry import names
from mergd.plugins.rules.interface import ReadOut, Slots, Statistic, Sum, Update
from mergd.state.history import History
from mergd.state.records import Counts, SlotSpec, Weight

FOLD_RULES = [name for name in names("rules") if not describe(name)["remerge_only"]]

BROKEN = '''"""Rules that are wrong in one way each."""

from dataclasses import dataclass

from mergd.plugins.rules.interface import ReadOut, ReadsTaskSum, TaskSum


@dataclass(frozen=True)
class Keeps(ReadOut):
    """Says what it does, and not what it keeps."""

    def keeps(self, w):
        raise RuntimeError("no idea")


class Shapeless(TaskSum):
    def slots(self, w):
        return {"sum": w.no_such_thing}


@dataclass(frozen=True)
class Slots(ReadOut):
    """Keeps what has no shape."""

    def keeps(self, w):
        return (Shapeless(),)


@dataclass(frozen=True)
class Demanding(ReadsTaskSum):
    """Has a parameter without a default."""

    strength: float


@dataclass(frozen=True)
class Silent(ReadsTaskSum):
    pass
'''
PROJECT = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "broken-rules"
version = "2.5"

[tool.setuptools]
py-modules = ["broken_rules", "broken_import"]

[project.entry-points."mergd.rules"]
keeps = "broken_rules:Keeps"
slots = "broken_rules:Slots"
demanding = "broken_rules:Demanding"
silent = "broken_rules:Silent"
absent = "broken_rules:Absent"
raises = "broken_import:Rule"
"""


@pytest.fixture(autouse=True, scope="module")
def commands() -> None:
    start_forking()


@pytest.fixture(scope="module")
def broken_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which a package of broken rules was installed."""
    project = tmp_path_factory.mktemp("broken") / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "broken_rules.py").write_text(BROKEN)
    (project / "broken_import.py").write_text("raise ZeroDivisionError('while it was imported')\n")
    return install(project, project.with_name("site"))


@pytest.fixture
def broken(broken_package: Path) -> Iterator[None]:
    """Have the broken rules found."""
    with on_the_path(broken_package):
        yield


def rows(answer: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rules of an answer by name."""
    return {rule["rule"]: rule for rule in answer["rules"]}


# ------------------------------------------------------------------------------------------------------ what it takes


@pytest.mark.parametrize("name", FOLD_RULES)
def test_what_a_version_takes_is_what_init_says(tmp_path: Path, name: str) -> None:
    base = outline(str(save_model(tmp_path / "base", tiny_base())))
    method = method_of({"rule": name})
    found = describe(name, alike(base.weights), model_bytes(base, "base", False))
    assert found["slots_bytes"] == slots_bytes(base, method) > 0
    assert found["spilled_bytes"] == spilled_bytes(base, method)
    assert found["version_bytes"] == version_bytes(base, method, "base", False)


@pytest.mark.parametrize("name", names("rules"))
def test_every_rule_of_ours_says_all_there_is_to_say(name: str) -> None:
    found = describe(name)
    assert found["error"] is None
    assert found["package"].startswith("mergd ")
    assert found["does"].endswith(".")
    assert found["source"]
    unknown = {key for key, value in found.items() if value is None} - {"error", "larger"}
    sizes = {"slots_bytes", "spilled_bytes", "version_bytes", "multiple"}
    kept = {"passes", "seeded", "order_matters", "exact_removal"}
    assert unknown == (sizes | kept if found["remerge_only"] else sizes)


def test_opcm_and_the_average_are_told_apart() -> None:
    found = {name: describe(name) for name in ("opcm", "average")}
    assert [found[name]["order_matters"] for name in found] == [True, False]
    assert [found[name]["exact_removal"] for name in found] == [False, True]
    assert found["average"]["multiples"] == dict.fromkeys(FORMS, 1.0)
    types = {parameter["name"]: parameter["type"] for parameter in found["opcm"]["parameters"]}
    assert types["alpha"] == "float"
    assert types["variant"].startswith("block | ")


def test_what_a_rule_keeps_is_read_by_those_that_keep_no_more() -> None:
    found = {name: set(describe(name)["read_by"]) for name in FOLD_RULES}
    assert "task_arithmetic" in found["average"]
    assert "average" in found["task_arithmetic"]
    assert "opcm" not in found["average"]
    assert not any("karcher" in others for others in found.values())


def test_the_configurations_rule_is_shown_with_what_is_kept_besides(new_merge: Callable[..., Sandbox]) -> None:
    plain, more = new_merge("plain"), new_merge("more", also_keep=("average",), parameters={"alpha": 0.25})
    one, other = (rows(asking.rules(merge.settings, None, "opcm"))["opcm"] for merge in (plain, more))
    assert other["slots_bytes"] > one["slots_bytes"]
    assert "average" in other["read_by"]
    assert "average" not in one["read_by"]
    assert "alpha=0.25" in str(other["statistics"])
    with History(more.store.database) as history:
        base = open_base(more.base, history.pins())
    assert other["version_bytes"] == version_bytes(base, method_of(more.settings.method), "base", False)


def test_a_rule_for_a_remerge_has_no_slots() -> None:
    found = describe("karcher")
    assert found["remerge_only"]
    assert found["statistics"] == []
    assert found["error"] is None


def test_headers_show_the_same_weights_as_reading_all_of_the_base_model(tmp_path: Path) -> None:
    model = tiny_base()
    model["lm_head.weight"] = model["embed_tokens.weight"].clone()
    merge = make_merge(tmp_path, model, CONFIG | {"tie_word_embeddings": True})
    with History(merge.store.database) as history:
        base = open_base(merge.base, history.pins())
    seen = outline(str(merge.base))
    assert (seen.weights, seen.tied, seen.fixed) == (base.weights, base.tied, base.fixed)
    assert seen.tied


# ------------------------------------------------------------------------------------------------------ large weights


@dataclass(frozen=True)
class Gram(Sum):
    """The sum of D^T D."""

    asked = 0

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        type(self).asked += 1
        return {"sum": SlotSpec((w.shape[-1], w.shape[-1]))}

    def term(self, u: Update, w: Weight) -> Slots:
        return {"sum": u.delta.mT @ u.delta}


@dataclass(frozen=True)
class GramRule(ReadOut):
    """Keeps Gram matrices of columns."""

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        return (Gram(),)

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        return torch.zeros(w.shape)


@pytest.fixture
def gram_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mergd.daemon.rules.load", "mergd.daemon.method.load"):
        monkeypatch.setattr(module, lambda group, name: GramRule)
    monkeypatch.setattr(Gram, "asked", 0)


@pytest.mark.usefixtures("gram_rule")
def test_a_slot_that_is_larger_than_its_weight_is_said_by_the_weights_names() -> None:
    wide = [Weight(f"layers.{i}.mlp.down.weight", (4, 16), "matrix") for i in range(3)]
    tall = [Weight(f"layers.{i}.mlp.up.weight", (16, 4), "matrix") for i in range(3)]
    found = describe("gram", alike([*wide, *tall]))
    assert found["slots_bytes"] == 3 * 4 * (16 * 16 + 4 * 4)
    assert found["larger"] == {
        "bytes": 3 * 4 * 16 * 16,
        "share": pytest.approx(16 / 17),
        "weights": {"layers.*.mlp.down.weight": 3},
    }
    (said,) = answers_rules.dominated(found)
    assert said == "gram: 94% of its slots are larger than their weights, those of layers.*.mlp.down.weight (3)"
    assert list(answers_rules.dominated(describe("gram", alike(tall)))) == []
    assert describe("gram")["multiples"] == {"square": 1.0, "1:4": 4.0, "4:1": 0.25}


@pytest.mark.usefixtures("gram_rule")
def test_a_rule_is_asked_as_often_as_there_are_shapes_not_weights() -> None:
    asked = []
    for count in (10, 30_000):
        Gram.asked = 0
        describe("gram", alike(Weight(f"experts.{i}", (4, 8 + i % 5), "matrix") for i in range(count)))
        asked.append(Gram.asked)
    assert asked[0] == asked[1]


def test_names_of_blocks_become_one_pattern() -> None:
    assert patterns(["h.0.w1.weight", "h.11.w1.weight", "conv1.weight", "7"]) == {
        "h.*.w1.weight": 2,
        "conv1.weight": 1,
        "*": 1,
    }


# ------------------------------------------------------------------------------------------------------- broken rules


@pytest.mark.usefixtures("broken")
def test_a_broken_rule_is_listed_with_its_error_and_breaks_nothing() -> None:
    found = rows(asking.rules(None, None, None))
    assert found.keys() == set(names("rules"))
    assert {name: rule["error"] for name, rule in found.items() if rule["error"]} == {
        "keeps": "RuntimeError: no idea",
        "slots": "AttributeError: 'Weight' object has no attribute 'no_such_thing'",
        "demanding": "parameters: strength: Field required",
        "absent": "the rule 'absent' cannot be loaded: module 'broken_rules' has no attribute 'Absent'",
        "raises": "the rule 'raises' cannot be loaded: while it was imported",
    }
    assert found["keeps"]["does"] == "Says what it does, and not what it keeps."
    assert found["demanding"]["parameters"] == [
        {"name": "strength", "type": "float", "default": None, "required": True}
    ]
    assert found["silent"]["does"] == found["silent"]["description"] == ""  # and not what dataclass wrote
    assert {rule["package"] for name, rule in found.items() if name in ("keeps", "silent")} == {"broken-rules 2.5"}
    assert len({tuple(rule) for rule in found.values()}) == 1  # each says the same things, known or not
    assert set(UNKNOWN) <= found["raises"].keys()


@pytest.mark.usefixtures("broken")
def test_the_command_says_so_and_exits_78_where_it_was_asked_for(tmp_path: Path) -> None:
    listed = mergd("rules", at=tmp_path)
    assert listed.code == 0
    assert "cannot be used: RuntimeError: no idea" in listed.out
    asked = mergd("rules", "keeps", at=tmp_path)
    assert asked.code == 78
    assert "error: RuntimeError: no idea" in asked.out
    assert "Says what it does" in asked.out


# -------------------------------------------------------------------------------------------------------- the command


def test_without_a_configuration_it_is_about_forms_of_matrices(tmp_path: Path) -> None:
    answer = mergd("rules", "--json", at=tmp_path).json
    assert answer["base"] is None
    assert rows(answer)["average"]["multiples"] == dict.fromkeys(FORMS, 1.0)
    assert rows(answer)["average"]["slots_bytes"] is None


def test_any_base_model_will_do(tmp_path: Path) -> None:
    base = save_model(tmp_path / "some", tiny_base())
    found = mergd("rules", "average", "--base", base, "--json", at=tmp_path).json
    assert found["base"]["weights"] == 5
    assert rows(found)["average"]["multiple"] == 1.0
    assert mergd("rules", "--base", tmp_path / "none", at=tmp_path).code == 78


def test_the_configurations_rule_has_its_parameters_and_its_mark(merge: Sandbox) -> None:
    found = rows(merge.mergd("rules", "--json").json)
    assert [name for name, rule in found.items() if rule["in_use"]] == ["opcm"]
    assert "opcm*" in merge.mergd("rules").out


def test_the_rule_in_use_is_that_of_the_head(new_merge: Callable[..., Sandbox]) -> None:
    merge = new_merge(rule="average")
    merge.drop("a", 1)
    merge.fold_all()
    assert merge.mergd("publish", "--rule", "task_arithmetic").code == 0
    found = rows(merge.mergd("rules", "--json").json)
    assert [name for name, rule in found.items() if rule["in_use"]] == ["task_arithmetic"]


def test_the_rules_are_there_when_the_base_model_is_not(merge: Sandbox) -> None:
    merge.base.rename(merge.root / "elsewhere")
    ended = merge.mergd("rules")
    assert ended.code == 0
    assert "without the configuration's base model" in ended.out
    assert "average" in ended.out


def test_no_state_is_needed(merge: Sandbox) -> None:
    before = merge.mergd("rules", "--json").json
    merge.state.rename(merge.root / "elsewhere")
    assert merge.mergd("rules", "--json").json == before


def test_a_rule_that_is_not_there_ends_with_those_that_are(tmp_path: Path) -> None:
    ended = mergd("rules", "nothing", at=tmp_path)
    assert ended.code == 78
    assert "average" in ended.err


def test_one_rule_in_full_shows_parameters_and_slots(merge: Sandbox) -> None:
    out = merge.mergd("rules", "opcm").out
    for text in (
        "alpha: float, default 0.5",
        "order of arrival: matters",
        "lookup: TaskSum()",
        "accumulator  F32 (6, 6)",
    ):
        assert text in out


def test_for_a_program_each_rule_is_one_line(merge: Sandbox) -> None:
    lines = merge.mergd("rules").out.splitlines()
    for name in names("rules"):
        assert len([line for line in lines if line.startswith((f"{name} ", f"{name}* "))]) == 1


@pytest.mark.parametrize("with_base", [False, True])
def test_on_a_terminal_it_fits_100_columns(merge: Sandbox, monkeypatch: pytest.MonkeyPatch, with_base: bool) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=180, highlight=False, soft_wrap=True)
    for module in (display, answers_rules):
        monkeypatch.setattr(module, "out", terminal)
    answer = asking.rules(merge.settings if with_base else None, None, None)
    answer["rules"].append(answer["rules"][0] | {"rule": "foreign[red]", "does": "Blue:\x1b[34m" + 40 * " long"})
    answers_rules.rules(answer)
    lines = (
        re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue().replace("\x1b[34m", "ESCAPED?")).split("\n\n")[0].splitlines()
    )
    assert max(len(line) for line in lines) <= 100
    assert len(lines) > 2 * len(answer["rules"])  # sentences are wrapped
    assert "foreign[red]" in "\n".join(lines)
    assert "ESCAPED?" not in shown.getvalue()


def test_the_answer_is_json(merge: Sandbox) -> None:
    answer = asking.rules(merge.settings, None, None)
    assert json.loads(json.dumps(answer)) == answer
