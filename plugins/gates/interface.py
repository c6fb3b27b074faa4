"""What a gate is: it looks at a drafted version and decides whether it may become the head."""

from typing import Protocol

from ...state.records import Drafted, Verdict


class Gate(Protocol):
    """Judges a draft by what it is given; it asks no database. Runs on the folding thread; the head cannot move meanwhile."""

    def judge(self, drafted: Drafted) -> Verdict:
        """Admit the draft, refuse its checkpoint, or hold it for a person.

        A person's approval lifts the codes of the reasons for which it was held; any other one holds it again.
        """
        ...
