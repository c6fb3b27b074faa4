"""The model: a small residual encoder, trained as base model on upright digits, then fine-tuned on one view at a time.

A task's classes are fixed before the fine-tuning, as CLIP's are by their names: each by its prototype, which is one
image as the base model embeds it. Only the encoder is trained and merged.
"""

import copy
from collections.abc import Iterator

import torch
from digit_tasks import CLASSES, SIDE, Digits
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 128
BLOCKS = 5
SHARPNESS = 10.0  # factor of the cosine between an embedding and a class's prototype
BATCH = 128
BASE_STEPS, BASE_RATE = 400, 2e-3
BASE_NOISE = 0.1  # standard deviation, on pixels of 0 to 1
TUNE_STEPS, TUNE_RATE = 100, 7e-4


class Block(nn.Module):
    """x + down(gelu(up(norm(x))))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, WIDTH)."""
        h: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return x + h


class Encoder(nn.Module):
    """Images (n, 8, 8) to embeddings (n, WIDTH) of norm 1; 175 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(SIDE * SIDE, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """images: (n, 8, 8)."""
        x = self.stem(images.flatten(1))
        for block in self.blocks:
            x = block(x)
        return F.normalize(self.norm(x), dim=1)


def train_base(digits: Digits, seed: int) -> Encoder:
    """Return an encoder trained on upright digits: noisy, and shifted by up to one pixel."""
    torch.manual_seed(seed)
    encoder, prototypes = Encoder(), nn.Parameter(0.1 * torch.randn(CLASSES, WIDTH))
    optimizer = torch.optim.AdamW([*encoder.parameters(), prototypes], lr=BASE_RATE)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, BASE_RATE, total_steps=BASE_STEPS)
    for batch in _batches(len(digits.train), BASE_STEPS):
        down, across = torch.randint(-1, 2, (2,)).tolist()
        images = digits.train[batch].roll((down, across), (1, 2))
        images = images + BASE_NOISE * torch.randn_like(images)
        _step(encoder, images, digits.train_labels[batch], F.normalize(prototypes, dim=1), optimizer)
        rate.step()
    return encoder


def one_shot_prototypes(base: Encoder, digits: Digits, seed: int) -> Tensor:
    """Return (CLASSES, WIDTH): the base model's embedding of one random training image of each class."""
    dice = torch.Generator().manual_seed(seed)
    drawn = [(digits.train_labels == label).nonzero()[:, 0] for label in range(CLASSES)]
    shots = torch.stack([places[torch.randint(len(places), (), generator=dice)] for places in drawn])
    with torch.no_grad():
        embedded: Tensor = base(digits.train[shots])
    return embedded


def fine_tune(base: Encoder, digits: Digits, prototypes: Tensor, seed: int) -> Encoder:
    """Return a copy of the base model, trained on these digits with the prototypes frozen."""
    torch.manual_seed(seed)
    encoder = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=TUNE_RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TUNE_STEPS)
    for batch in _batches(len(digits.train), TUNE_STEPS):
        _step(encoder, digits.train[batch], digits.train_labels[batch], prototypes, optimizer)
        rate.step()
    return encoder


def accuracy(encoder: Encoder, digits: Digits, prototypes: Tensor) -> float:
    """Return the share of test images, in percent, whose nearest prototype is that of their class."""
    with torch.no_grad():
        nearest = (encoder(digits.test) @ prototypes.T).argmax(1)
    return 100 * int((nearest == digits.test_labels).sum()) / len(digits.test)


def _batches(count: int, steps: int) -> Iterator[Tensor]:
    """Yield `steps` batches of places; each round through all `count` images is in a new random order."""
    waiting = torch.randperm(count)
    for _ in range(steps):
        if len(waiting) < BATCH:
            waiting = torch.randperm(count)
        yield waiting[:BATCH]
        waiting = waiting[BATCH:]


def _step(
    encoder: Encoder, images: Tensor, labels: Tensor, prototypes: Tensor, optimizer: torch.optim.Optimizer
) -> None:
    loss = F.cross_entropy(SHARPNESS * encoder(images) @ prototypes.T, labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
