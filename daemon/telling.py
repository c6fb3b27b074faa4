"""Telling the hooks that the head has moved: in order, and at least once."""

import logging
from collections.abc import Callable, Iterable, Mapping

from ..plugins.hooks.interface import Hook
from ..plugins.registry import load
from ..state.records import News

log = logging.getLogger(__name__)


def make_hooks(names: Iterable[str]) -> dict[str, Hook]:
    """Return the hooks of these names. Raises Misconfigured for one that is not installed."""
    return {name: load("hooks", name)() for name in names}


def tell_hooks(hooks: Mapping[str, Hook], owed: Iterable[tuple[str, News]], told: Callable[[str, int], None]) -> None:
    """Tell each hook what it is owed, oldest first, and call `told`; one that fails is told again later, before all else.

    A hook that is not configured any more stays owed.
    """
    failed: set[str] = set()
    for name, news in owed:
        if name not in hooks or name in failed:
            continue
        try:
            hooks[name].tell(news)
        except Exception:
            log.exception("the hook %s failed; it will be told again", name)
            failed.add(name)
        else:
            told(name, news.id)
