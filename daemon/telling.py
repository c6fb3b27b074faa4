"""Telling the hooks that the head has moved: in order, at least once, and never holding up a fold that is to come."""

import logging
from collections.abc import Mapping

from ..plugins.hooks.interface import Hook
from ..state.history import History
from ..state.records import Move, News
from ..state.store import Store

log = logging.getLogger(__name__)


def tell_hooks(hooks: Mapping[str, Hook], history: History, store: Store) -> None:
    """Tell each hook what it is owed; one that fails is told again later, before anything newer."""
    failed: set[str] = set()
    for name, move in history.owed():
        news = _news(move, history, store)
        if name not in hooks or name in failed or news is None:
            continue
        try:
            hooks[name].tell(news)
        except Exception:
            log.exception("the hook %s failed; it will be told again", name)
            failed.add(name)
        else:
            history.told(name, move.id)


def _news(move: Move, history: History, store: Store) -> News | None:
    version = history.version(move.to_version)
    if version is None:
        return None
    model = str(store.model(version.number))
    return News(move.id, version.number, move.from_version, move.who, move.why, model, version.digest, move.at)
