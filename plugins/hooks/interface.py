"""What a hook is: it is told, in order and at least once, that the head has moved."""

from typing import Protocol

from ...state.records import News


class Hook(Protocol):
    """Told after the fact; what it does cannot hold up folding for long, nor undo the move."""

    def tell(self, news: News) -> None:
        """Take one piece of news. An exception means "tell me again"; what follows waits until then."""
        ...
