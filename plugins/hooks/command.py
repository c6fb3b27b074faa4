"""The hook that runs a program of the user: the notice is its standard input, and only an exit code of 0 means told."""

from collections.abc import Callable
from dataclasses import dataclass

from ...state.errors import Unavailable
from ...state.records import Notice
from ..programs import Program, Ran
from .interface import text_of


@dataclass(frozen=True)
class Command:
    """A program, as a child or as a unit of systemd."""

    program: Program
    seconds: float  # that one run may take

    def tell(self, notice: Notice, stopped: Callable[[], bool]) -> str:
        """Run it; returns the last line that it wrote. Raises Unavailable with how it ended."""
        ran = self.program.run(text_of(notice), self.seconds, stopped)
        if ran.exit != 0:
            raise Unavailable(_end(ran), "it is told again")
        return ran.last_line


def _end(ran: Ran) -> str:
    if ran.exit is None:
        return ran.last_line
    how = f"it ended with {ran.exit}" if ran.exit > 0 else f"signal {-ran.exit} ended it"
    return f"{how}: {ran.last_line}" if ran.last_line else how
