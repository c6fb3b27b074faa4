"""The page for operators: its sections with the commands beneath them, and the sentences that head its troubleshooting."""

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from string import Template

import repository
from support.commands import Ended
from support.merges import Sandbox

PAGE = repository.ROOT / "docs" / "operating.md"
ANY = "…"  # what differs


def sections() -> dict[str, str]:
    """Return the text beneath each heading, whatever its depth; a heading in backticks without them."""
    parts = re.split(r"^#{1,3} (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return {heading.strip("`"): text for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def sentences() -> list[str]:
    """Return the headings of the troubleshooting."""
    return re.findall(r"^### `(.+)`$", PAGE.read_text(), flags=re.MULTILINE)


def pattern(sentence: str) -> str:
    """Return the regular expression of a sentence."""
    return ".*".join(map(re.escape, sentence.split(ANY)))


def heading_of(line: str) -> str:
    """Return the heading of what a line of the status says: the one with the most fixed words."""
    found = [heading for heading in sentences() if re.match(pattern(heading), line)]
    assert found, f"docs/operating.md has no heading for: {line}"
    return max(found, key=lambda heading: len(heading.replace(ANY, "")))


def status_says(merge: Sandbox, label: str) -> str:
    """Return the heading of what `mergd status` says under a label; empty where it says nothing there."""
    lines = merge.mergd("status").out.splitlines()
    return next((heading_of(line) for line in lines if line.startswith(f"{label}: ")), "")


def commands_of(section: str) -> list[str]:
    """Return the commands beneath a heading, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", sections()[section], flags=re.MULTILINE | re.DOTALL)
    assert blocks, f"there is no command beneath {section!r}"
    return [line for block in blocks for line in block.splitlines()]


def follow(
    section: str,
    names: Mapping[str, object],
    mergd: Callable[..., Ended],
    systemctl: Callable[[str], None] = lambda verb: None,
) -> Iterator[str]:
    """Type what stands beneath a heading, as root, and yield what each command printed; each has to end well.

    `mergd` is called with the words after it; `systemctl` stands for the service manager, and is called with the verb.
    """
    values = {name: str(value) for name, value in names.items()}
    for line in commands_of(section):
        program, *words = [Template(word).safe_substitute(values) for word in shlex.split(line)]
        if program == "systemctl":
            verb, unit = words
            assert unit == f"mergd@{values['NAME']}"
            systemctl(verb)
        elif program == "mergd":
            done = mergd(*words)
            assert done.code == 0, f"{line}: {done.out}{done.err}"
            yield done.out
        else:
            yield subprocess.run(["sh", "-c", line], env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"} | values, check=True,
                                 capture_output=True, text=True).stdout  # fmt: skip
