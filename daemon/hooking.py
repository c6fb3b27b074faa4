"""Hooking: what the configuration's hooks are told, each by a courier of its own, and what is noted of that."""

import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..plugins.hooks.command import Command
from ..plugins.hooks.courier import Courier
from ..plugins.hooks.interface import Way
from ..plugins.hooks.webhook import Webhook, read_keys
from ..plugins.programs import Child, Unit
from ..state.history import History
from ..state.records import Notice
from ..state.store import Store
from .credentials import credential_path
from .settings import Settings
from .settings_tables import HookSettings

log = logging.getLogger(__name__)

LOOKS_UP = 2.0  # seconds for which an end waits for what is told now: what was not noted is told again
TICK = 0.02  # seconds between looks at couriers that a command waits for


class Hooking:
    """The hooks of one merge's configuration; for the thread that writes the history."""

    def __init__(
        self, settings: Settings, history: History, store: Store, wake: Callable[[], None] = lambda: None
    ) -> None:
        """`wake` is called, from another thread, when there is something to note."""
        self._settings, self._history, self._store, self._wake = settings, history, store, wake
        self._couriers: dict[str, Courier] = {}
        self._opened = False

    def open(self) -> None:
        """Have the hooks told of what happens from now on; one that was there already, of what it is owed."""
        self._history.notices.listen(*self._settings.hook)
        self._opened = True
        self._couriers = {name: self._courier(name) for name in self._settings.hook}

    def _courier(self, name: str) -> Courier:
        hook = self._settings.hook[name]
        return Courier(name, way_of(hook, self._store.logs / f"hook-{name}.log"), hook.retry, self._wake)

    def take(self, settings: Settings) -> None:
        """Go on with other settings: what failed is tried again at once, by them."""
        self._settings, self._opened = settings, False
        self.close()

    def turn(self) -> bool:
        """Note what was told, and give each courier that is free the next notice; returns whether something was noted.

        What there is no room to note stays with its courier, so that nothing is told twice for that.
        """
        if not self._opened:  # for which there was no room on the disk
            self.open()
        noted = [self._note(name, courier) for name, courier in self._couriers.items()]
        for name, courier in self._couriers.items():
            if courier.free and (notice := self._history.notices.next(name)) is not None:
                courier.give(self._placed(notice))
        return any(noted)

    def _note(self, name: str, courier: Courier) -> bool:
        if (ended := courier.ended) is None:
            return False
        if ended.lost:
            self._history.notices.give_up(name, ended.notice.seq, ended.lost)
        else:
            self._history.notices.told(name, ended.notice.seq)
        courier.noted()
        return True

    def _placed(self, notice: Notice) -> Notice:
        """Return a notice with the path of the version that the head moved to, where the state lies now."""
        return notice if notice.to_version is None else replace(notice, path=str(self._store.model(notice.to_version)))

    @property
    def busy(self) -> bool:
        """Whether a hook is being told."""
        return any(courier.busy for courier in self._couriers.values())

    def finish(self) -> None:
        """Tell what is owed, until a hook was told of all or failed."""
        self.turn()
        while self.busy:
            time.sleep(TICK)
            self.turn()

    def told(self) -> dict[str, dict[str, str]]:
        """Return what goes on for each hook, and what went wrong."""
        return {name: {"doing": it.doing, "trouble": it.trouble} for name, it in self._couriers.items()}

    def close(self) -> None:
        """End what runs, and note what was told by then; what there is no room to note is told again."""
        couriers, self._couriers = self._couriers, {}
        for courier in couriers.values():
            courier.close()
        until = time.monotonic() + LOOKS_UP
        for name, courier in couriers.items():
            courier.join(until - time.monotonic())
            try:
                self._note(name, courier)
            except (OSError, sqlite3.Error) as error:
                log.warning("what hook %s was told last cannot be noted, and is told again: %s", name, error)


def way_of(hook: HookSettings, log: Path) -> Way:
    """Return how a hook is told."""
    if hook.url:
        return Webhook(hook.url, partial(keys_of, hook), hook.timeout)
    return Command(Unit(Path(hook.socket)) if hook.socket else Child(hook.command, log), hook.timeout)


def keys_of(hook: HookSettings) -> list[bytes]:
    """Return the keys that sign what a webhook is told. Raises Misconfigured or NotPermitted."""
    if not hook.secret:
        return []
    return read_keys(credential_path(hook.secret, "a hook's secret"))


def check_keys(settings: Settings) -> None:
    """Raise what keys_of does, for any of the hooks: before anything is to be told."""
    for hook in settings.hook.values():
        keys_of(hook)
