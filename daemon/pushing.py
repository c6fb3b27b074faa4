"""Pushing the versions to a repository of the Hub: what is to be pushed, by the history, and what is kept of it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from ..plugins.hooks.interface import Hook
from ..state.errors import Busy
from ..state.history import History
from ..state.records import News, Version
from ..state.store import Store
from ..state.wording import shown
from .credentials import credential_path
from .settings import Settings
from .settings_tables import HubSettings
from .sources import base_repository
from .telling import hook_name

if TYPE_CHECKING:  # the client is imported only where something is pushed
    from ..plugins.hooks.hub_push import HubPush
    from ..plugins.sources.hub.backoff import Backoff
    from ..plugins.sources.hub.sending import Digests
    from ..plugins.sources.hub.target import Push, Target

log = logging.getLogger(__name__)

BACKOFF, MARK = "push_backoff", "push_mark"  # pins: until when the Hub is left alone, and what marks our commits


class Pushing:
    """The hook that pushes, where the settings name a repository; else nothing."""

    def __init__(self, settings: Settings, history: History, store: Store, wake: Callable[[], None]) -> None:
        """`wake` is called, from another thread, when the hooks are to be told again."""
        self._settings, self._history, self._store, self._wake = settings, history, store, wake
        self._hook: HubPush | None = None
        self._digests: Digests

    @property
    def hooks(self) -> Mapping[str, Hook]:
        """Return the hook by its name."""
        return {hook_name(self._settings): self} if self._settings.hub.publish_to else {}

    def open(self) -> None:
        """Begin to push, with what is owed and the newest move. Raises Misconfigured where the token is missing."""
        if not self._settings.hub.publish_to:
            return
        from ..plugins.hooks.hub_push import HubPush
        from ..plugins.sources.hub.backoff import Backoff
        from ..plugins.sources.hub.sending import Digests
        from ..plugins.sources.hub.target import read_token

        read_token(token_path(self._settings.hub))  # it must be there; each push reads it anew
        self._digests = Digests()
        self._history.owe(hook_name(self._settings))
        backoff = Backoff(**self._history.pins(BACKOFF).get(BACKOFF, {}))
        book = Book(self._settings, self._history, self._store)
        self._hook = HubPush(self._target, book, self._wake, backoff)

    def _target(self, stopped: Callable[[], bool]) -> "Target":
        from ..plugins.sources.hub.target import Target

        hub = self._settings.hub
        return Target(hub.publish_to, token_path(hub), stopped, self._digests, private_too=hub.publish_private_sources)

    def tell(self, news: News) -> None:
        """Push it. Raises Busy until that is done."""
        if self._hook is None:
            raise Busy("a daemon pushes it")
        self._hook.tell(news)

    def take(self, settings: Settings) -> None:
        """Try again, by new settings, what failed or was set aside. What is pushed by others ends: not all of it may be."""
        if self._hook is not None:
            token_path(settings.hub)  # before anything is taken
        others, self._settings = settings.hub != self._settings.hub, settings
        if self._hook is not None:
            self._hook.again(self._target, stop=others)
            self._wake()

    @property
    def busy(self) -> bool:
        """Whether something is being pushed."""
        return self._hook is not None and self._hook.busy

    def told(self) -> dict[str, str] | None:
        """Return what goes on, and what went wrong; None where nothing is pushed."""
        return {"doing": self._hook.doing, "trouble": self._hook.trouble} if self._hook is not None else None

    def close(self) -> None:
        """End what runs."""
        if self._hook is not None:
            self._hook.close()


class Book:
    """What the history has for a push, and keeps of it."""

    def __init__(self, settings: Settings, history: History, store: Store) -> None:
        self._settings, self._repo, self._base = settings, settings.hub.publish_to, base_repository(settings)
        self._history, self._store = history, store

    def plan_aside(self, news: News) -> "Push | None":
        """Return what `plan` would, from any thread: it has a connection of its own, that cannot write."""
        with History(self._store.database) as history:
            return Book(self._settings, history, self._store).plan(news)

    def plan(self, news: News) -> "Push | None":
        """Return what is to be pushed for a move; None if it is there already, or its files are not to be had."""
        from ..plugins.sources.hub.target import Push

        history, version = self._history, self._history.version(news.version)
        if version is None or history.pushes.of_move(news.id, self._repo) is not None:
            return None
        if not version.kept:
            log.warning("%s is not pushed: %s", version, version.damaged or "its files were dropped before it could be")
            return None
        last = history.pushes.last(self._repo)
        return Push(
            move=news.id,
            version=version.number,
            folder=self._store.model(version.number),
            title=self._title(news, version),
            mark=f"Mergd-Move: {self._mark()}/{news.id} {version.digest[:16]}",
            known=last.commit if last else "",
            tagged=history.pushes.first_of(version.number, self._repo) is not None,
            secret=self._secret(version),
            base=self._base,
            last=history.moves(1)[0].id == news.id,
        )

    def _title(self, news: News, version: Version) -> str:
        """Return what the move did, in a line."""
        get = self._history.checkpoints.get
        if news.why not in ("fold", "replace", version.cause):
            return f"rolled back to {version}" if news.why == "rollback" else f"back to {version}: {news.why}"
        if version.removed is not None:
            return f"{version}: removed {shown(get(version.removed).name)}"
        what = f"folded {shown(get(version.checkpoint).name)}" if version.checkpoint is not None else version.cause
        return f"{version}: {what}"

    def _mark(self) -> str:
        """Return what tells this merge's commits from those of another one that was pushed to the same repository."""
        if MARK not in (pins := self._history.pins(MARK)):
            self._history.pin(pins := {MARK: uuid4().hex})
        return str(pins[MARK])

    def _secret(self, version: Version) -> str:
        """Return which part of a version, or of those that it was made from, is not known to be everybody's."""
        names = self._history.not_public(version.number)
        if names:
            more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
            return f"{names[0]}{more} not known to be public"
        return "" if self._base else "the base model is a folder, which is not known to be public"

    def note(self, push: "Push", commit: str) -> None:
        """Keep which commit a move was pushed as."""
        self._history.pushes.add(push.move, push.version, self._repo, commit)

    def rest(self, backoff: "Backoff") -> None:
        """Keep until when the Hub is left alone, over a restart."""
        self._history.pin({BACKOFF: asdict(backoff)})


def token_path(hub: HubSettings) -> Path:
    """Return where the token that may write lies. Raises Misconfigured for a credential of systemd's without systemd."""
    return credential_path(hub.write_token, "hub.write_token")
