"""A page's examples: the files that it has its reader write, and the commands that it has them type."""

import re
import shlex
from pathlib import Path

# "... `my_rules.py`:", an empty line, and a block of code; another block for the same file is added to it.
FILE = re.compile(r"`([\w.-]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def write_files(page: Path, folder: Path) -> Path:
    """Write the files of a page into a new folder, as its reader would; returns the folder."""
    folder.mkdir()
    for name, text in FILE.findall(page.read_text()):
        with (folder / name).open("a") as file:
            file.write(text)
    return folder


def commands(page: Path) -> list[list[str]]:
    """Return what a page has its reader type, in order, as words."""
    return [shlex.split(line) for block in SHELL.findall(page.read_text()) for line in block.splitlines()]
