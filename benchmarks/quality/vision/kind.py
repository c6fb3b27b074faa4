"""Vision as a kind of model: how its base is pretrained, its tasks' heads are made and its encoder is fine-tuned."""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..kinds import Tuned, Weights
from . import glyphs
from .encoder import BLOCKS, CHANNELS, HIDDEN, WIDTH, Encoder, loss_of, nearest
from .pictures import Pictures, pictures, to_floats
from .styles import grainy, moved
from .training import Adapter, Learner, Whole, batches, copied, optimize

BASE_STEPS, BASE_BATCH, BASE_RATE, BASE_WARM = 3700, 128, 2e-3, 0.1
BASE_MOVES = (10, 0, 0.7)  # less than a task's: degrees, slant, least size
BASE_NOISE = 0.1  # standard deviation, on pixels of 0 to 1
TUNE_STEPS, TUNE_BATCH = 188, 64  # four rounds through 3,000 pictures
FISHER_PICTURES = 1000


class Vision:
    """Encoders of pictures. A task's head: one picture of each class, as the base model embeds it."""

    name = "vision"
    config: Mapping[str, Any] = {
        "model_type": "residual-mlp", "width": WIDTH, "hidden": HIDDEN, "blocks": BLOCKS, "channels": list(CHANNELS)
    }  # fmt: skip

    def encoder(self) -> nn.Module:
        """Return an encoder with any weights."""
        with torch.random.fork_rng(devices=[]):
            return Encoder()

    def base(self, seed: int) -> Weights:
        """Train an encoder to tell the letters of twelve writing systems from one another."""
        large, labels = glyphs.pretraining()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, prototypes = Encoder(), nn.Parameter(0.1 * torch.randn(int(labels.max()) + 1, WIDTH))
        dice = Generator().manual_seed(seed)

        def loss(batch: Tensor) -> Tensor:
            images = grainy(moved(large[batch], dice, *BASE_MOVES), dice, BASE_NOISE)
            return loss_of(encoder(images), F.normalize(prototypes, dim=1), labels[batch])

        shown = batches(len(large), BASE_BATCH, BASE_STEPS, dice)
        optimize([*encoder.parameters(), prototypes], loss, shown, BASE_RATE, BASE_WARM)
        return copied(encoder.state_dict())

    def fine_tune(self, base: Weights, task: str, seed: int, *, adapter: bool = False, shuffled: bool = False) -> Tuned:
        """Train for a task: all weights, or an adapter of the linear ones; or on labels that mean nothing."""
        data, dice, encoder = pictures(task, seed), _dice("tune", task, seed), self.encoder()
        images, labels, prototypes = to_floats(data.train), data.train_labels, _prototypes(base, data, task, seed)
        if shuffled:
            labels = labels[torch.randperm(len(labels), generator=dice)]
        learner: Learner = Adapter(base, dice) if adapter else Whole(base)

        def loss(batch: Tensor) -> Tensor:
            embedded: Tensor = functional_call(encoder, learner.weights(), (images[batch],))
            return loss_of(embedded, prototypes, labels[batch])

        shown = batches(len(images), TUNE_BATCH, TUNE_STEPS, dice)
        optimize(learner.trained(), loss, shown, learner.rate)
        return learner.tuned(loss, torch.randperm(len(images), generator=dice)[:FISHER_PICTURES])

    def accuracy(self, base: Weights, weights: Weights, task: str, seed: int, most: int | None = None) -> float:
        """Return the percentage of test pictures whose nearest prototype is that of their class."""
        data = pictures(task, seed)
        prototypes, labels = _prototypes(base, data, task, seed), data.test_labels[:most]
        embedded = _embedded(weights, data.test[:most])
        return 100 * int((nearest(embedded, prototypes) == labels).sum()) / len(labels)


def _embedded(weights: Weights, images: Tensor) -> Tensor:
    with torch.no_grad():
        embedded: Tensor = functional_call(Vision().encoder(), weights, (to_floats(images),))
    return embedded


def _prototypes(base: Weights, data: Pictures, task: str, seed: int) -> Tensor:
    """Return (classes, WIDTH): the base model's embedding of one random training picture of each class."""
    dice = _dice("head", task, seed)
    drawn = [(data.train_labels == label).nonzero()[:, 0] for label in range(int(data.train_labels.max()) + 1)]
    return _embedded(
        base, data.train[[int(places[torch.randint(len(places), (), generator=dice)]) for places in drawn]]
    )


def _dice(*what: object) -> Generator:
    return Generator().manual_seed(zlib.crc32(" ".join(map(str, what)).encode()))
