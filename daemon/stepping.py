"""Stepping: each call of torch's by a rule is a step, so that one that iterates for long is known to get on, and can be ended."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

from ..state.errors import Abandoned
from .progress import Progress


class Stepping(TorchFunctionMode):
    """Counts the calls of the block's thread: a rule is pure, and knows of no progress."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make the call. Raises Abandoned if somebody asked for the end."""
        if self._progress.stopped():
            raise Abandoned
        return func(*args, **(kwargs or {}))
