"""The tasks: real handwritten digits (scikit-learn's `load_digits`), seen in five fixed views, split anew per seed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

SIDE = 8  # pixels
CLASSES = 10
TEST_IMAGES = 500  # of 1,797; the others are for training

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Digits:
    """One split of the digits. Images are (n, 8, 8), 0 to 1; labels are (n,)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def seen(self, view: View) -> "Digits":
        """Return the same split with every image changed by `view`."""
        return Digits(view(self.train), self.train_labels, view(self.test), self.test_labels)


def split_digits(seed: int) -> Digits:
    """Return the digits as they were written, split at random into training and test images."""
    data = load_digits()
    images = torch.from_numpy(data.images).float() / 16
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Digits(images[train], labels[train], images[test], labels[test])


def arrival_order(seed: int) -> tuple[str, ...]:
    """Return the names of the views in the order in which this seed's checkpoints arrive."""
    names = sorted(VIEWS)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    return tuple(names[int(i)] for i in order)


def _negative(images: Tensor) -> Tensor:
    return 1 - images


def _turned(images: Tensor) -> Tensor:
    """A quarter turn."""
    return images.rot90(1, (1, 2))


def _mirrored(images: Tensor) -> Tensor:
    """Left is right."""
    return images.flip(2)


def _rolled(images: Tensor) -> Tensor:
    """The corners meet in the middle."""
    return images.roll((SIDE // 2, SIDE // 2), (1, 2))


def _edges(images: Tensor) -> Tensor:
    """How much a pixel differs from its upper and its left neighbour."""
    down = images.diff(dim=1, prepend=torch.zeros_like(images[:, :1]))
    across = images.diff(dim=2, prepend=torch.zeros_like(images[:, :, :1]))
    return (down.abs() + across.abs()) / 2


VIEWS: dict[str, View] = {
    "edges": _edges,
    "mirrored": _mirrored,
    "negative": _negative,
    "rolled": _rolled,
    "turned": _turned,
}
