"""Names that came from outside can do nothing to a terminal: wherever one is shown, by the real command line, it is escaped."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from support.commands import Ended, eventually
from support.merges import Sandbox, make_merge, set_in
from support.models import save_model, tiny_base

from mergd.state.wording import quoted

NAME = "a\x1b[31mred\nnew"
SHOWN = r"a\x1b[31mred\nnew"
TENSOR = "evil\x1b]0;title\x07\u202e.weight"


def is_harmless(text: str) -> None:
    """Assert that nothing in a text is a control character but the ends of lines, and that no line is the name's own."""
    bad = {c for c in text if not c.isprintable() and c != "\n"}
    assert not bad, text
    assert not [line for line in text.splitlines() if line.startswith("new")]


def assert_harmless(ended: Ended) -> str:
    is_harmless(ended.out)
    is_harmless(ended.err)
    assert "Traceback" not in ended.err
    return ended.out + ended.err


@pytest.fixture
def merge(tmp_path: Path) -> Sandbox:
    """A merge whose base model has a tensor with such a name, and a checkpoint that is folded under such a name."""
    base = tiny_base() | {TENSOR: torch.randn(5, 4)}
    merge = make_merge(tmp_path, base)
    merge.drop(NAME, 1)
    return merge


def test_a_folded_checkpoint(merge: Sandbox) -> None:
    assert SHOWN in assert_harmless(merge.mergd("run", "--once"))
    assert [row["name"] for row in merge.mergd("list", "--json").json] == [NAME]  # scripts get it as it is
    for words in (["list"], ["log"], ["show", NAME], ["fold", NAME], ["approve", NAME], ["check", merge.watch / NAME]):
        said = assert_harmless(merge.mergd(*words))
        assert SHOWN in said or words[0] == "check"
    assert r"evil\x1b]0;title\x07\u202e.weight" in assert_harmless(merge.mergd("show", "v1"))
    merge.drop("b", 2)
    merge.mergd("run", "--once")
    for file in ("status.json", "log.jsonl"):
        is_harmless((merge.state / file).read_text())


def test_what_a_rollback_says_to_type_works_for_such_a_name(merge: Sandbox) -> None:
    merge.drop("0", 2)
    merge.mergd("run", "--once")
    said = assert_harmless(merge.mergd("rollback", "v1"))
    assert r"mergd fold --again $'a\u001b[31mred\u000anew'" in said


def test_held_refused_and_decided_on(merge: Sandbox) -> None:
    merge.drop("held" + NAME, merge.fine_tuned(2, 0.7))
    save_model(merge.watch / ("refused" + NAME), merge.fine_tuned(3) | {"x" + TENSOR: torch.zeros(2)})
    assert_harmless(merge.mergd("run", "--once"))
    listed = assert_harmless(merge.mergd("list"))
    assert r"xevil\x1b]0;title\x07\u202e.weight" in listed
    assert r"mergd approve $'" in listed
    assert_harmless(merge.mergd("show", "refused" + NAME))
    for place in ("held" + NAME, "refused" + NAME):
        assert_harmless(merge.mergd("check", merge.watch / place, "--deep"))
    assert_harmless(merge.mergd("approve", "held" + NAME))
    assert_harmless(merge.mergd("refuse", "held" + NAME, "--why", "\x1b[2J\nnew"))
    assert_harmless(merge.mergd("list"))
    assert_harmless(merge.mergd("retry", "held" + NAME))
    assert_harmless(merge.mergd("retry", "no\x1b[31msuch\nnew"))


def test_a_running_daemon(merge: Sandbox) -> None:
    set_in(merge.config, quiet='"0.1s"')
    with merge.running("run") as daemon:
        eventually(lambda: merge.states().get(NAME) == "folded")
        assert_harmless(merge.mergd("status"))
        assert_harmless(merge.mergd("pause", "--why", "\x1b[31m\nnew"))
        assert_harmless(merge.mergd("status"))
        assert_harmless(merge.mergd("fold", NAME))
        is_harmless(daemon.err)
    status = (merge.state / "status.json").read_text()
    is_harmless(status)
    assert json.loads(status)["paused"]["why"] == "\x1b[31m\nnew"


def test_the_shell_understands_the_words_that_are_shown() -> None:
    for name in (NAME, "it's", "a b", "-x", "ü\x85\u202e\U000e0001'\\"):
        words = ["bash", "-c", f"printf %s {quoted(name)}"]
        said = subprocess.run(words, capture_output=True, env={"LC_ALL": "C.UTF-8"}, check=True)
        assert said.stdout.decode() == name
