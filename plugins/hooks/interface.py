"""What a hook is: it is told, in order and at least once, that the head has moved.

Hooks of installed packages are told by a call, those of the configuration by a program or a webhook (docs/hooks.md).
"""

import json
from collections.abc import Callable
from typing import Protocol

from ...state.records import News, Notice


class Hook(Protocol):
    """Told after the fact, on the thread that takes requests: it must hand over what takes long."""

    def tell(self, news: News) -> None:
        """Take one piece of news. An exception means "tell me again"; what follows waits until then.

        Busy says that it is under way: no line in the log.
        """
        ...


class Way(Protocol):
    """How a hook of the configuration is told, on a thread of its own."""

    def tell(self, notice: Notice, stopped: Callable[[], bool]) -> str:
        """Tell it once, and return what it says to that, in a line. Any error means that it was not told."""
        ...


def text_of(notice: Notice) -> bytes:
    """Return a notice as a hook gets it: one JSON object in one line."""
    told = {
        "id": notice.id,
        "seq": notice.seq,
        "kind": notice.kind,
        "version": notice.to_version,
        "from": notice.from_version,
        "to": notice.to_version,
        "who": notice.who,
        "why": notice.why,
        "path": notice.path,
        "digest": notice.digest,
        "at": notice.at,
    }
    return json.dumps(told).encode() + b"\n"
