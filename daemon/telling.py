"""Telling the hooks that the head has moved: in order, and at least once."""

import logging
from collections.abc import Callable, Iterable, Mapping

from ..plugins.hooks.interface import Hook
from ..plugins.registry import make
from ..state.errors import Busy
from ..state.records import News
from .settings import Settings

log = logging.getLogger(__name__)


def hook_name(settings: Settings) -> str:
    """Return by which name the history knows who is told: another repository is told anew."""
    return f"hub:{settings.hub.publish_to}"


def hook_names(settings: Settings) -> list[str]:
    """Return who is told of each move of the head."""
    return [*settings.hooks, *([hook_name(settings)] if settings.hub.publish_to else [])]


def make_hooks(names: Iterable[str]) -> dict[str, Hook]:
    """Return the hooks of these names. Raises Misconfigured for one that is not installed, or cannot be made."""
    return {name: make("hooks", name) for name in names}


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
        except Busy:  # it takes long, and has been begun
            failed.add(name)
        except Exception:
            log.exception("the hook %s failed; it will be told again", name)
            failed.add(name)
        else:
            told(name, news.id)
