"""Evaluating: the gates that are programs, what tells their measurements apart, and what was measured before a draft is begun."""

import json
import os
from functools import partial
from itertools import chain
from pathlib import Path

from ..plugins.gates.program import Program
from ..plugins.gates.tolerance import Tolerance, best_of
from ..plugins.programs import Child, Unit
from ..state.digests import digest_of, digest_of_file
from ..state.history import History
from ..state.records import Metrics, Version
from ..state.store import Store
from .gating import Measured
from .settings import Settings
from .settings_tables import GateSettings

NOBODYS = {"HOME": "/nonexistent"}  # else a library may find what lies in the home of whoever runs the daemon
LARGEST = 64 * 2**20  # bytes of a file that counts as the program
APPROVED = "metric-total-drop"  # the code of what is measured from the best on the way


def program_of(name: str, table: GateSettings, store: Store) -> Program:
    """Return a gate of the configuration."""
    log = store.logs / f"gate-{name}.log"
    runner = Unit(Path(table.socket)) if table.socket else Child(table.command, log, NOBODYS)
    tolerance = Tolerance(table.drop, table.total_drop)
    return Program(name, runner, table.deadline, tolerance, enforces=table.mode == "enforce")


def identity_of(name: str, table: GateSettings) -> str:
    """Return what tells a gate's measurements from another's: its name, its words, and the files among these as they are.

    Not how long it may take, nor what is made of its numbers. What a unit runs, only the administrator knows.
    """
    files = {word: digest_of_file(Path(word)) for word in table.command if _is_small_file(word)}
    return digest_of(json.dumps([name, table.command, table.socket, files]).encode())


def _is_small_file(word: str) -> bool:
    path = Path(word)
    try:
        there = path.is_absolute() and path.is_file() and path.stat().st_size <= LARGEST
        return there and os.access(path, os.R_OK)
    except (OSError, ValueError):
        return False


def measured_before(settings: Settings, history: History, head: Version | None) -> dict[str, Measured]:
    """Return the gates that are programs, by name, and what they measured before a draft on this head is begun."""
    store = Store(settings.state)
    return {name: _measured(name, table, store, history, head) for name, table in settings.gate.items()}


def _measured(name: str, table: GateSettings, store: Store, history: History, head: Version | None) -> Measured:
    identity = identity_of(name, table)
    best, from_base = best_before(history, head, identity)
    return Measured(program_of(name, table, store), identity, partial(_aside, store, identity), best, from_base)


def _aside(store: Store, identity: str, digest: str) -> Metrics | None:
    """Return what was measured of a content, from any thread: it has a connection of its own."""
    with History(store.database) as history:
        return history.evaluations.one(digest, identity)


def best_before(history: History, head: Version | None, identity: str) -> tuple[Metrics, bool]:
    """Return the best of each metric on the way to the head, and whether the base model, unmeasured as yet, is on it.

    It is kept for the head, so that the next draft's way is one version long.
    """
    evaluations, base = history.evaluations, history.pins("base_digest").get("base_digest")
    leg = evaluations.leg(head.number if head else None, identity, APPROVED)
    found = ((digest, evaluations.one(digest, identity)) for digest in leg.digests)  # one at a time: a way may be long
    best = best_of(metrics for metrics in chain([leg.before], (metrics for _, metrics in found)) if metrics)
    unmeasured = base in leg.digests and evaluations.one(str(base), identity) is None
    if head is not None and leg.digests and not unmeasured:
        evaluations.keep_best(head.number, identity, best)
    return best, unmeasured
