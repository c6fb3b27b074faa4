"""The inbox of the loop: messages from any thread or signal handler, each of which only says what to look up."""

import queue
from typing import Literal

from ..state.errors import Busy
from .control import Ask

STOPPING = Busy("mergd is stopping", "ask again once it runs")
Message = Literal["rescan", "upkeep", "scrub", "reload", "told", "look"] | Ask


class Inbox:
    """A queue that a signal handler may fill while it is being emptied."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._closed = False

    def post(self, message: Message) -> None:
        """Leave a message; a request that comes too late is answered so."""
        if self._closed and isinstance(message, Ask):
            message.error(STOPPING)
        else:
            self._messages.put(message)

    def take(self, patience: float) -> list[Message]:
        """Wait so many seconds for a message; return all there are, the same wake-up once."""
        try:
            messages = [self._messages.get(timeout=patience)]
        except queue.Empty:
            return []
        while not self._messages.empty():
            message = self._messages.get()
            if message not in messages:
                messages.append(message)
        return messages

    def empty(self) -> bool:
        """Whether nothing is waiting."""
        return self._messages.empty()

    def close(self) -> None:
        """Answer every request that is waiting, or still comes, with STOPPING."""
        self._closed = True
        while not self._messages.empty():
            if isinstance(message := self._messages.get(), Ask):
                message.error(STOPPING)
