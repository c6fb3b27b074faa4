"""The documents against the code: settings, commands and options, the words, and a checkpoint's way."""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any

import figures_table
import pytest
import repository
import rules_table
import settings_table
from support.command_line import COMMANDS, check_command

from mergd.daemon.figures import FIGURES
from mergd.daemon.settings import keys, validate

DOCS = sorted((repository.ROOT / "docs").rglob("*.md"))
DESIGN = repository.ROOT / "docs" / "design.md"
PAGES = [repository.ROOT / "README.md", repository.ROOT / "CHANGELOG.md", *DOCS]


def name_of(path: Path) -> str:
    return str(path.relative_to(repository.ROOT))


# ---------------------------------------------------------------------------------------------------------- settings


def test_the_settings_page_is_what_the_settings_say() -> None:
    assert settings_table.PATH.read_text() == settings_table.text(), "run: python tests/settings_table.py --write"


@pytest.mark.parametrize("name", keys())
def test_every_setting_has_a_description_of_one_line(name: str) -> None:
    description = keys()[name].description
    assert description
    assert "\n" not in description
    assert "|" not in description  # it stands in a table
    assert description.endswith(".")


@pytest.mark.parametrize("name", [name for name, field in keys().items() if not field.is_required()])
def test_a_default_is_read_back_as_the_page_writes_it(name: str) -> None:
    source = {"hub": {"namespace": "acme"}} if name == "watch" else {"watch": "/watch"}  # one of them must be given
    needed = {"base_model": "/base", "state": "/state", **source}
    shown = settings_table.default(keys()[name]).strip("`").strip('"')
    value = {"true": True, "false": False, "[]": [], "the rule's own": {}}.get(shown, shown)
    value = json.loads(shown) if shown.startswith("[") else value
    *tables, key = name.split(".")
    one: dict[str, Any] = {tables[0]: {"NAME": {"command": ["/true"]}}} if tables[1:] == ["NAME"] else {}
    given = place = deepcopy(needed | one)
    for table in tables:
        place = place.setdefault(table, {})
    if not one or key not in ("command", "socket", "url"):  # of which there is one
        place[key] = value
    assert validate(given, "a test") == validate(needed | one, "a test")


# ------------------------------------------------------------------------------------------------------------- rules


def test_the_rules_page_is_what_the_rules_say() -> None:
    assert rules_table.PATH.read_text() == rules_table.text(), "run: python tests/rules_table.py --write"


def test_the_rules_page_names_each_rule_and_no_other() -> None:
    shown = {row[0] for head, rows in tables(rules_table.PATH.read_text()) if head[0] == "rule" for row in rows}
    assert shown == {facts["rule"] for facts in rules_table.ours()}
    assert len(shown) >= 10


# ----------------------------------------------------------------------------------------------------------- figures


def test_the_page_on_observing_has_every_figure_with_its_meaning() -> None:
    assert figures_table.PATH.read_text() == figures_table.text(), "run: python tests/figures_table.py --write"


def test_the_page_on_observing_names_each_alert_and_no_other() -> None:
    alerts = (repository.ROOT / "systemd" / "observing" / "alerts.yml").read_text()
    named = set(re.findall(r"`(Mergd\w+)`", figures_table.PATH.read_text()))
    assert named == set(re.findall(r"alert: (\w+)", alerts))


def test_the_pages_name_only_figures_that_there_are() -> None:
    known = {figure.name for figure in FIGURES}
    assert {name for path in PAGES for name in re.findall(r"`(mergd_(?!manifest)\w+)`", path.read_text())} == known


# ---------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_a_help_text(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert not [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]


def shown_commands(text: str) -> Iterator[str]:
    """Yield what follows `mergd` on each command line that a page shows: in a code span, or a line of a code block."""
    parts = re.split(r"^ *```.*$", text, flags=re.MULTILINE)
    spans = [span for prose in parts[::2] for span in re.findall(r"`([^`]+)`", prose)]
    blocks = [line for block in parts[1::2] for line in shell_lines(block)]
    for line in spans + blocks:
        match = re.fullmatch(r"(?:sudo (?:-u \S+ )?)?(?:\S*/)?mergd((?: .*)?)", line.replace("\n", " ").strip())
        if match:
            yield match[1].strip()


def shell_lines(block: str) -> list[str]:
    """Return the commands of a code block: of one that marks them with `$`, only those."""
    lines = block.replace("\\\n", " ").splitlines()
    prompted = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
    return prompted or lines


SHOWN = [(path, line) for path in PAGES for line in shown_commands(path.read_text())]


@pytest.mark.parametrize(("path", "line"), SHOWN, ids=[f"{name_of(path)}: mergd {line}" for path, line in SHOWN])
def test_a_page_names_only_commands_and_options_that_exist(path: Path, line: str) -> None:
    check_command(line)


def test_the_pages_do_show_commands() -> None:
    shown = {line.split()[0] for _, line in SHOWN if line}
    assert shown >= {"init", "run", "rollback"}


@pytest.mark.parametrize("line", ["--no-such status", "nothing", "init --no-such", "rollback v1 v2", "fold --base x"])
def test_the_check_of_commands_finds_what_is_wrong(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such option|no command|too much"):
        check_command(line)


@pytest.mark.parametrize("path", repository.module_files(), ids=str)
def test_a_hint_in_the_code_names_only_commands_and_options_that_exist(path: Path) -> None:
    tree = ast.walk(ast.parse((repository.ROOT / path).read_text()))
    nodes = [child for node in tree if not isinstance(node, ast.Expr) for child in ast.iter_child_nodes(node)]
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    pattern = r"(?:: |see |run |then )mergd ([a-z]+(?: --[a-z]+)*)|mergd ([a-z]+(?: --[a-z]+)+)"
    for string in strings:
        for plain, with_options in re.findall(pattern, string):
            name, *options = (plain or with_options).split()
            assert name in COMMANDS, f"{string!r}: there is no command {name!r}"
            known = {text for parameter in COMMANDS[name].params for text in parameter.opts} | {"--help"}
            assert set(options) <= known, string


def test_the_example_configuration_shows_a_command_that_exists() -> None:
    text = (repository.ROOT / "systemd" / "mergd.toml").read_text()
    lines = re.findall(r"^#\s+mergd (.+)$", re.sub(r"\\\n#\s+", "", text), flags=re.MULTILINE)
    for line in lines:
        check_command(line)
    assert lines


# ------------------------------------------------------------------------------------------------------------- tables


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield the head and the rows of each table of a page, without backticks."""
    for table in re.findall(r"(?:^\|.*\|[ ]*\n)+", text, flags=re.MULTILINE):
        head, _, *rows = [
            [cell.strip().strip("`") for cell in line.strip("| \n").split("|")] for line in table.splitlines()
        ]
        yield [cell.lower() for cell in head], rows


def table(first: str) -> list[list[str]]:
    """Return the rows of the table of docs/design.md whose first column is called so."""
    found = [rows for head, rows in tables(DESIGN.read_text()) if head[0] == first]
    assert len(found) == 1, f"docs/design.md has {len(found)} tables that begin with the column {first!r}"
    return found[0]


def the_way() -> list[tuple[str, str, str]]:
    """Return (step, file, function) of a checkpoint's way."""
    (head,) = [head for head, _ in tables(DESIGN.read_text()) if head[0] == "step"]
    columns = [head.index(name) for name in ("step", "file", "function")]
    return [(row[columns[0]], row[columns[1]], row[columns[2]]) for row in table("step")]


# ----------------------------------------------------------------------------------------------------------- the way


def test_each_step_of_the_way_is_a_function_of_its_file() -> None:
    for step, file, function in the_way():
        module = importlib.import_module("mergd." + file.removesuffix(".py").replace("/", "."))
        assert callable(reduce(getattr, function.removesuffix("()").split("."), module)), step


def test_the_way_has_all_its_stations() -> None:
    files = {file for _, file, _ in the_way()}
    parts = {"admission", "worker", "folding", "publishing", "retention"}
    assert files >= {f"daemon/{part}.py" for part in parts} | {"state/committing.py", "state/history.py"}
    assert any(file.startswith("plugins/sources/") for file in files)


def test_no_file_of_the_way_imports_one_further_up() -> None:
    files = list(dict.fromkeys(file for _, file, _ in the_way()))
    upwards = {
        f"{file} imports {other}"
        for i, file in enumerate(files)
        for other in files[:i]
        if other in imported_files(Path(file))
    }
    assert not upwards


def imported_files(path: Path) -> set[str]:
    """Return the files of the package that a file imports anywhere, relative to the root."""
    found = set()
    for node in ast.walk(ast.parse((repository.ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("mergd.").replace(".", "/") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.parents[node.level - 1] if node.level else Path()
            module = above.joinpath(*(node.module or "").removeprefix("mergd.").split("."))
            found |= {str(module), *(str(module / alias.name) for alias in node.names)}
    return {f"{module}.py" for module in found if (repository.ROOT / f"{module}.py").is_file()}


def test_imports_are_seen() -> None:
    assert imported_files(Path("daemon/folding.py")) >= {
        "daemon/base.py",
        "state/store.py",
        "plugins/rules/interface.py",
    }
    assert "daemon/asking.py" in imported_files(Path("daemon/cli_versions.py"))  # from . import asking


# --------------------------------------------------------------------------------------------------------- the words

# What the words of docs/design.md are not called. Their own meaning elsewhere is left alone: a Hub's snapshot is not a
# version, and a mean may well have coefficients in a paper's title.
SYNONYMS = {
    "base model": r"foundation model|parent model",
    "checkpoint": r"candidate checkpoint|donor",
    "task vector": r"taskvectors?|delta (?:model|weights?|vector)s?|weight deltas?|difference vectors?",
    "intake, admission": r"ingest\w*",
    "held": r"quarantin\w*",
    "share": r"(?:merg\w+|mixing) coefficients?",
    "scale": r"rescal\w+ factor|scaling coefficients?",
    "split rank": r"rank threshold|effective rank|cut-?off rank",
    "version": r"snapshot of (?:a|the) (?:version|model|merge)|version snapshots?|save points?",
    "move the head": r"promot(?:e|es|ed|ing|ion)",
    "roll back": r"revert\w*",
    "draft": r"staging (?:area|folder|directory)|staged",
    "history": r"ledgers?",
}


@pytest.mark.parametrize("word", SYNONYMS)
def test_no_synonym_creeps_in(word: str) -> None:
    pattern = re.compile(rf"\b(?:{SYNONYMS[word]})\b", re.IGNORECASE)
    found = [
        f"{path}: {match[0]}"
        for path, text in repository.texts()
        if path.name not in ("LICENSE", Path(__file__).name)
        for match in pattern.finditer(text.replace("_", " "))
    ]
    assert not found, f"say {word}"


def test_the_words_are_used() -> None:
    words = [re.sub(r"\s*\(.*\)", "", row[0]).lower() for row in table("word")]
    assert len(words) == len(set(words)) > 20
    pages = [path.read_text() for path in PAGES if path != DESIGN]
    code = [(repository.ROOT / path).read_text() for path in repository.module_files()]
    text = plain("\n".join(pages + code))
    assert not [word for word in words if plain(word) not in text]


def plain(text: str) -> str:
    """Return a text in which words look alike, be they prose, compound or identifier."""
    return re.sub(r"[\s_-]+", " ", text).lower()


# --------------------------------------------------------------------------------------------------- the repository


def test_the_changelog_has_what_is_unreleased() -> None:
    assert re.search(r"^## \[?Unreleased\]?$", (repository.ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)


def test_decisions_are_numbered_without_gaps() -> None:
    decisions = sorted((repository.ROOT / "docs" / "decisions").glob("*.md"))
    for number, path in enumerate(decisions, start=1):
        assert path.name.startswith(f"{number:04d}-")
        assert path.read_text().startswith(f"# {number:04d}: ")
    assert decisions


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_between_the_pages_lead_somewhere(path: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


def test_no_file_names_a_place_of_one_machine() -> None:
    home = re.compile(r"(?<![\w.}])/(?:home|root|work|Users)/\w[\w./-]*")
    found = {f"{path}: {match[0]}" for path, text in repository.texts() for match in home.finditer(text)}
    assert not found
