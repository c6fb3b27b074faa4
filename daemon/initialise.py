"""Init: pins a base model, a rule and its parameters in a new state directory, and writes the configuration."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..state.errors import Misconfigured, Unavailable
from ..state.history import History
from ..state.lock import Lock
from ..state.records import Checkpoint, CheckpointState, Reason, Sighting
from ..state.store import Store
from ..state.wording import decide, quoted
from .base import Base, examine, locate
from .blocks import machine_of
from .configuration import check_owner
from .method import method_of, parameters_of
from .opening import pins_of
from .progress import Progress
from .publishing import slots_bytes, spilled_bytes, version_bytes
from .settings import Settings, check_apart
from .settings_tables import Table
from .sources import make_sources

AS_EXISTING: dict[str, CheckpointState] = {"fold": "settling", "hold": "held", "ignore": "refused"}


@dataclass(frozen=True)
class Initialised:
    """What init found."""

    base: Base
    version_bytes: int  # what each version takes on disk
    slots_bytes: int  # of these, what its slots take
    spilled_bytes: int  # and what the one that is being folded takes besides
    existing: list[Checkpoint]  # what lies in the watched folder already


def initialise(settings: Settings, config: Path, progress: Progress) -> Initialised:
    """Create the state and the configuration file.

    Raises Misconfigured where either is there already: nothing is ever overwritten.
    """
    check_apart(settings)
    if config.exists():
        raise Misconfigured(f"{config} is there already", "name another with --config, or use that one: mergd run")
    try:
        config.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"cannot make {config.parent}: {error.strerror}", "name another with --config") from None
    check_owner(config.parent)
    if settings.watch and not settings.watch.is_dir():
        raise Misconfigured(f"there is no directory {settings.watch} to watch", f"run: mkdir -p {settings.watch}")
    store = Store(settings.state)
    if settings.state.exists() and any(settings.state.iterdir()):
        raise Misconfigured(f"{settings.state} is not empty", "choose a new folder for the state; it is created")
    method = method_of(settings.method)
    place, commit = locate(settings.base_model, progress=progress)
    base = examine(place, progress, settings.convolutions)
    machine_of(settings, base, method)
    sightings = seen(settings)
    store.create()
    lock = Lock(store.lock)
    lock.take("mergd init")
    try:
        with History(store.database, write=True) as history:
            history.pin(pins_of(settings, method, base, commit))
            existing = take_existing(sightings, settings, history)
    finally:
        lock.release()
    write_config(settings.model_copy(update={"parameters": parameters_of(method.rule)}), config)
    cost = version_bytes(base, method, settings.out_dtype, settings.copy_code)
    return Initialised(base, cost, slots_bytes(base, method), spilled_bytes(base, method), existing)


def take_existing(sightings: Iterable[Sighting], settings: Settings, history: History) -> list[Checkpoint]:
    """Record what lies at the sources already, by name, as the setting `existing` says; returns what is new.

    What is to be folded settles first, as whatever arrives: nobody says that its copy is whole.
    """
    how, new = settings.existing, []
    for sighting in sightings:
        if not history.checkpoints.placed(sighting.place):
            reasons = () if how == "fold" else (_existing(how, sighting.place),)
            new.append(history.checkpoints.add(sighting, AS_EXISTING[how], *reasons))
    return new


def seen(settings: Settings) -> tuple[Sighting, ...]:
    """Return what lies at the sources. Raises Unavailable where one of them cannot look."""
    sources = make_sources(settings)
    try:
        sources.poll()
        scan = sources.scan()
    finally:
        sources.close()
    if scan.blind:
        raise Unavailable(scan.trouble or sources.trouble, "try again when it can be looked at")
    return scan.sightings


def _existing(how: str, place: str) -> Reason:
    return Reason(
        "existing",
        "it lay in the watched folder at init",
        f"checkpoints that arrive later (existing = {how})",
        decide(place) if how == "hold" else f"to fold it: mergd fold {quoted(place)}",
    )


# ------------------------------------------------------------------------------------------------- the configuration


def write_config(settings: Settings, path: Path) -> None:
    """Write a new configuration file: what was chosen, and every other setting as a comment with its default."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "w") as file:
        os.fchmod(fd, 0o644)
        file.write(config_text(settings))


def config_text(settings: Settings) -> str:
    """Return a configuration file's text."""
    tables = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, dict) and any(isinstance(entry, Table) for entry in value.values()):
            tables += [line for k, v in value.items() for line in (f"[{name}.{toml_key(k)}]", *_lines(v))]
        elif isinstance(value, dict):
            entries = (f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items())
            tables += [f"# {field.description}", f"[{name}]", *entries, ""]
        elif isinstance(value, Table):
            tables += [f"# {field.description}", f"[{name}]", *_lines(value)]
    head = "# mergd's configuration. What is commented out has its default."
    return "\n".join([head, "", *_lines(settings), *tables])


def _lines(settings: Table) -> Iterator[str]:
    """Yield what a table says: each setting with its description, as a comment where it was not chosen."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if not isinstance(value, dict | Table):
            mark = "# " if name not in settings.model_fields_set else ""
            yield from (f"# {field.description}", f"{mark}{name} = {toml_value(value)}", "")


def toml_key(key: str) -> str:
    """Return a key as TOML writes it: quoted only where it must be, in single quotes as regular expressions like it."""
    if re.fullmatch(r"[\w-]+", key, re.ASCII):
        return key
    return json.dumps(key, ensure_ascii=False) if "'" in key else f"'{key}'"


def toml_value(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    return json.dumps("" if value is None else str(value), ensure_ascii=False)
