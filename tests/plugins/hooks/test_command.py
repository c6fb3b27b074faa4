"""The hook that runs a program: what the program is given, and which of its ends means told."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from support.notices import NOTICE, TOLD

from mergd.plugins.hooks.command import Command
from mergd.plugins.programs import Ran
from mergd.state.errors import Unavailable


@dataclass
class Asked:
    """A program that ends as a test says."""

    ran: Ran
    asked: list[tuple[bytes, float, bool]] = field(default_factory=list)

    def run(self, request: bytes, seconds: float, stopped: Callable[[], bool]) -> Ran:
        self.asked.append((request, seconds, stopped()))
        return self.ran


def test_a_program_gets_the_notice_in_a_line_and_its_last_line_comes_back() -> None:
    program = Asked(Ran(0, b"", "restarted"))
    assert Command(program, 5.0).tell(NOTICE, lambda: False) == "restarted"
    ((request, seconds, stopped),) = program.asked
    assert (json.loads(request), seconds, stopped) == (TOLD, 5.0, False)
    assert request.count(b"\n") == 1
    assert request.endswith(b"\n")


@pytest.mark.parametrize(
    ("ran", "why"),
    [
        (Ran(3, b"", "no such service"), "it ended with 3: no such service"),
        (Ran(1, b"", ""), "it ended with 1"),
        (Ran(-9, b"", ""), "signal 9 ended it"),
        (Ran(None, b"", "it took too long"), "it took too long"),
    ],
)
def test_any_other_end_means_that_it_was_not_told(ran: Ran, why: str) -> None:
    with pytest.raises(Unavailable, match=f"^{why}$"):
        Command(Asked(ran), 5.0).tell(NOTICE, lambda: False)
