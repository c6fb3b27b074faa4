"""What a hook is: it is told, in order and at least once, that the head has moved."""

from typing import Protocol

from ...state.records import News


class Hook(Protocol):
    """Told after the fact, on the thread that takes requests: it must hand over what takes long."""

    def tell(self, news: News) -> None:
        """Take one piece of news. An exception means "tell me again"; what follows waits until then.

        Busy says that it is under way: no line in the log.
        """
        ...
