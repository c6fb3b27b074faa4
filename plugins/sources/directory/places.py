"""Which places of a watched directory could hold a checkpoint: by names alone, two levels deep, no file opened.

A place is a folder or a lone weight file; the steps of a training, RUN/checkpoint-500; or the snapshots of a Hugging Face
cache, models--org--name/snapshots/<commit>.
"""

import errno
import logging
import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import translate
from functools import cache, lru_cache
from pathlib import Path

from ....state.records import FileStamp, Sighting
from ....state.users import owner_name
from ...formats._files import never_read

log = logging.getLogger(__name__)

IGNORED = (".*", "*~", "*.tmp", "*.part", "*.partial", "*.incomplete", "*.lock", "*.aria2", "*.crdownload",
           "tmp-checkpoint-*", "~syncthing~*", "lost+found")  # fmt: skip
WEIGHTS = ".safetensors"
FINAL = "model.safetensors"  # beside a training's steps, in the folder that is watched itself
SIDECAR = "checkpoint.toml"  # in which a checkpoint's maker says what it counts
RELEVANT = (f"*{WEIGHTS}", f"*{WEIGHTS}.index.json", "config.json", "adapter_config.json", SIDECAR)
STEP = re.compile(r"checkpoint-(\d+)", re.ASCII)
# What a trainer leaves beside the weights. The last of them comes last: while they arrive, the first will do.
TRAINERS = ("trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
CACHED = re.compile(r"models--(.+)")
SNAPSHOTS = "snapshots"
# It went away, or is a link that leads nowhere or round in a circle.
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def inside(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yield every place under a root that has these entries."""
    for name in names:
        if not named_as_place(name):
            continue
        folder = root / name
        parts = [*_snapshots(folder), *_steps(folder)]
        yield from parts
        if not parts or _holds_weights(folder):
            yield folder


def sight(source: str, root: Path, place: Path) -> Sighting | None:
    """Return the sighting of one place, wherever it lies, or None if nothing there could be a checkpoint."""
    name = _name(root, place)
    try:
        if place.is_dir():
            run, step = _run_of(place)
            stamps = tuple(_stamps(place))
            return Sighting(source, str(place), name, stamps, run, step, _owner(place, stamps))
        if place.suffix == WEIGHTS or never_read(place.name):
            run = str(place.parent) if place.name == FINAL and _steps(place.parent) else ""
            return Sighting(
                source, str(place), name, (FileStamp.of(place.name, os.stat(place)),), run, owner=owner_name(place)
            )
    except OSError as error:
        if error.errno not in GONE:  # a closer look says what keeps us from it
            return Sighting(source, str(place), name, ())
        log.debug("%s cannot be looked at: %s", place, error.strerror)
    return None


def named_as_place(name: str) -> bool:
    """Whether a name is one that a checkpoint may have. One whose bytes are no UTF-8 can be written down nowhere."""
    return not matches(name, IGNORED) and _is_text(name)


@lru_cache(maxsize=1000)
def _is_text(name: str) -> bool:
    """Whether a name can be written down; of one that cannot, it is told once, and not at each scan."""
    try:
        name.encode()
    except UnicodeEncodeError:
        log.warning("%r is passed over: its name is no UTF-8", name)
        return False
    return True


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name is like one of these."""
    return _either(patterns).fullmatch(name) is not None


@cache
def _either(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Return patterns as one: a scan asks for each name in each folder."""
    return re.compile("|".join(map(translate, patterns)))


def _name(root: Path, place: Path) -> str:
    """Return what people call a place: where several have the same last part, more of it."""
    cached = CACHED.fullmatch(place.parent.parent.name)
    if cached and place.parent.name == SNAPSHOTS:
        return f"{cached[1].replace('--', '/')}@{place.name[:7]}"
    return f"{place.parent.name}/{place.name}" if place.parent.parent == root else place.name


# ----------------------------------------------------------------------------------------------- one level further down


def _steps(folder: Path) -> list[Path]:
    """Return the steps of the training that writes into a folder."""
    return [folder / name for name in _listed(folder) if STEP.fullmatch(name) and _is_step(folder / name)]


def _is_step(folder: Path) -> bool:
    """Whether a trainer's files lie in a folder of such a name; of what we may not enter, its name has to do."""
    try:
        return not set(TRAINERS).isdisjoint(os.listdir(folder))
    except PermissionError:
        return True
    except OSError:
        return False


def _snapshots(folder: Path) -> list[Path]:
    if not CACHED.fullmatch(folder.name):
        return []
    snapshots = folder / SNAPSHOTS
    return [snapshots / name for name in _listed(snapshots) if named_as_place(name)]


def _holds_weights(folder: Path) -> bool:
    return any(name.endswith(WEIGHTS) and not matches(name, IGNORED) for name in _listed(folder))


def _run_of(folder: Path) -> tuple[str, int | None]:
    """Return the folder of the training that a folder is of, and which step of it: none for its final model."""
    step = STEP.fullmatch(folder.name)
    if step and _is_step(folder):
        return str(folder.parent), int(step[1])
    return (str(folder), None) if _steps(folder) else ("", None)


def _listed(folder: Path) -> list[str]:
    """Return what is in a folder; of a file, or of what we may not enter, nothing."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


# ------------------------------------------------------------------------------------------------------------- stamps


def _stamps(folder: Path) -> Iterator[FileStamp]:
    for name in sorted(os.listdir(folder)):
        if not (matches(name, RELEVANT) or never_read(name)) or not named_as_place(name):
            continue
        try:
            stamp = FileStamp.of(name, os.stat(folder / name))
        except OSError as error:
            if error.errno not in GONE:
                raise
            continue
        yield stamp


def _owner(folder: Path, stamps: tuple[FileStamp, ...]) -> str:
    """Return who owns the weights: the largest file."""
    return owner_name(folder / max(stamps, key=lambda stamp: stamp.size).name if stamps else folder)
