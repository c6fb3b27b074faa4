"""The manual page: it is what the help says, and roff takes every line of it."""

import re
import shutil
import subprocess

import man_page
import pytest
from support.command_line import CLI, COMMANDS


def test_the_page_is_what_the_help_says() -> None:
    assert man_page.PATH.read_text() == man_page.text(), "run: python tests/man_page.py --write"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_part_with_all_its_options(name: str) -> None:
    part = "".join(man_page.described(name, COMMANDS[name])).replace("\\-", "-")
    inner = getattr(COMMANDS[name], "commands", {"": COMMANDS[name]})
    assert all(f".SS mergd {name} {sub}".strip() in part for sub in inner)
    for command in inner.values():
        for param in command.params:
            assert param.param_type_name == "argument" or param.opts[0] in part


def test_every_request_is_one_that_man_knows() -> None:
    """A line that begins with a point by accident would not be shown."""
    lines = man_page.text().splitlines()
    assert {line.split()[0] for line in lines if line[:1] in (".", "'")} <= {
        '.\\"',
        ".TH",
        ".SH",
        ".SS",
        ".PP",
        ".TP",
        ".B",
        ".BR",
    }
    assert not [line for line in lines if re.search(r"\\(?![-e&f\"])", line)]
    assert CLI.help


@pytest.mark.parametrize("text", [".hidden", "'quoted", "a\\b", "--long"])
def test_nothing_in_a_text_is_a_request(text: str) -> None:
    escaped = man_page.roff(text)
    assert escaped[0] not in ".'"
    assert escaped.replace("\\&", "").replace("\\-", "-").replace("\\e", "\\") == text


@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff; the lexical check stands")
def test_groff_warns_of_nothing_and_shows_every_command() -> None:
    words = ["groff", "-man", "-Tascii", "-ww", "-P-c", "-rLL=200n", str(man_page.PATH)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    shown = re.sub(r".\x08", "", done.stdout)
    assert all(f"mergd {name}" in shown for name in COMMANDS)
