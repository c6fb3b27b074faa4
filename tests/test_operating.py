"""The page for operators against the code: what `mergd status` says heads its troubleshooting, and nothing else does."""

import ast
import re
from collections.abc import Iterator

import pytest
import repository
from support.operating import ANY, heading_of, pattern, sections, sentences

from mergd.daemon.answers import COUNTS

# Where the sentences are made that `mergd status` says when something is the matter.
SPEAKERS = {
    "daemon/answers.py": ("_sources", "_hooks", "_pushed"),
    "daemon/disk.py": ("_numbers", "_pause", "fail", "suffices"),
    "daemon/intake.py": ("_bring_up_to_date",),
    "daemon/rebuilding.py": ("_restore",),
    "daemon/room.py": ("lacking",),
    "daemon/scrubbing.py": ("contain", "trouble", "_fall_back"),
    "daemon/sources.py": ("_looked",),
    "daemon/tasks.py": ("bring_back_head",),
    "daemon/working.py": ("_head_has_slots",),
    "state/disk_errors.py": ("meaning",),
    "plugins/sources/directory/__init__.py": ("scan",),
    "plugins/sources/hub/backoff.py": ("told",),
    "plugins/sources/hub/client.py": ("_as_ours", "_check_status", "left"),
    "plugins/sources/hub/namespace.py": ("_check_ours", "poll"),
}
# What is said there, and heads nothing.
ELSEWHERE = {
    "told of all",  # no trouble
    "bring the watched folder back",  # the next step, which the page has
    "it is asked again later",
    "look into the kernel's log: dmesg",
    "ask for access on its page, then set HF_TOKEN to a token of that account",  # beneath what it is the next step of
    "name a model of safetensors files",  # of a base model, at init
}


def functions(file: str, names: tuple[str, ...]) -> Iterator[ast.FunctionDef]:
    """Yield the functions of a file that are called so."""
    tree = ast.parse((repository.ROOT / file).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names]
    assert {node.name for node in found} == set(names), file
    yield from found


def is_shown(node: ast.AST) -> bool:
    """Whether the texts in some code may be shown: it is no docstring, and no line of the log."""
    if isinstance(node, ast.Expr):
        node = node.value
        return not isinstance(node, ast.Constant) and is_shown(node)
    return not (isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log."))


def texts(node: ast.AST) -> Iterator[str]:
    """Yield the texts in some code, with … for what differs."""
    for child in filter(is_shown, ast.iter_child_nodes(node)):
        if isinstance(child, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else ANY for part in child.values)
            for part in child.values:
                yield from texts(part)
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        else:
            yield from texts(child)


def is_a_sentence(text: str) -> bool:
    return len(re.findall(r"[A-Za-z]{2,}", text.replace(ANY, " "))) >= 2


SAID = {text for file, names in SPEAKERS.items() for node in functions(file, names) for text in texts(node)}
ALL = sorted(filter(is_a_sentence, SAID - ELSEWHERE))


@pytest.mark.parametrize("text", ALL)
def test_what_the_status_says_is_a_heading(text: str) -> None:
    words = [piece.strip(" ;:,()") for piece in text.split(ANY)]
    whole = ".*".join(re.escape(word) for word in words if word)
    fits = [h for h in sentences() if re.search(whole, h) or re.match(pattern(h.partition(": ")[2]), text)]
    assert fits, "docs/operating.md has no such heading"


@pytest.mark.parametrize("heading", sentences())
def test_no_heading_is_dead(heading: str) -> None:
    (status,) = functions("daemon/answers.py", ("status",))
    shown = list(texts(status))
    label, _, rest = heading.partition(": ")
    assert label in shown
    for piece in filter(None, (piece.strip(" ,()") for piece in re.split(rf"{ANY}|: |; |, | \(", rest))):
        assert [text for text in (*shown, *SAID, *COUNTS) if piece in text], f"the status says {piece!r} nowhere"


def test_each_heading_has_its_advice() -> None:
    beneath = sections()
    assert all(beneath[heading].strip() for heading in sentences())
    assert len(set(sentences())) == len(sentences()) > 20


def test_every_file_that_tells_of_trouble_is_a_speaker_or_passes_it_on() -> None:
    passes_on = {"daemon/parts.py", "daemon/answers_rules.py", "daemon/loop.py", "daemon/worker.py", "daemon/scanning.py", "daemon/pushing.py", "daemon/hooking.py",
                 "daemon/asking_rules.py", "plugins/hooks/courier.py", "plugins/hooks/hub_push.py"}  # fmt: skip
    sets = re.compile(r"\b(?:self\.(?:_?trouble|held_up) ?=|history\.pause\(WHO|def trouble\b)|trouble = ")
    found = {str(path) for path in repository.module_files() if sets.search((repository.ROOT / path).read_text())}
    assert "daemon/disk.py" in found
    assert found - {"plugins/programs.py"} <= SPEAKERS.keys() | passes_on


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        ("trouble: paused: disk full: a version needs 75,000 bytes, 3 are free", "… bytes, … are free"),
        ("trouble: v3 is damaged: models/000003/x", "trouble: … is damaged: …"),
        ("hooks: deploy: 2 to be told, last error: no", "… to be told, last error: …"),
    ],
)
def test_a_line_of_the_status_leads_to_its_heading(line: str, heading: str) -> None:
    assert heading in heading_of(line)
    assert re.match(pattern(heading_of(line)), line)


def test_a_line_that_nobody_wrote_about_is_found() -> None:
    with pytest.raises(AssertionError, match="no heading"):
        heading_of("trouble: the moon is in the way")
