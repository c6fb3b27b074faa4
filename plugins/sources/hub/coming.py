"""How far a download of the Hub's client is: a bar that it believes to draw, which tells a function instead."""

import threading
from collections.abc import Callable
from typing import Any

from huggingface_hub.utils import tqdm

Came = Callable[[int, int], None]  # bytes that came now, and of how many in all, as far as that is known


def bar_that(came: Came) -> type[tqdm]:
    """Return a class of bars that tell of bytes that come; they draw nothing.

    The client has several: of files, of what xet transfers, and of bytes that arrive in files, which alone counts.
    """
    telling = threading.Lock()

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            name = str(kwargs.get("name") or "")
            self._counts = kwargs.get("unit") == "B" and not name.endswith("transfer")
            super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            """Tell of it; what was counted before a try that failed is taken back, below nothing."""
            if self._counts:
                with telling:
                    came(int(n or 0), int(self.total or 0))

    return Bar
