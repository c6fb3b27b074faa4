"""Random numbers that are a function of a seed and a place: the same on every device, in any block, in any release."""

import torch
from torch import Tensor

CHUNK = 2**14  # numbers at a time: they stay in the processor's cache, and no thread has to be woken for them
CPU = torch.device("cpu")
DRAWS = 2.0**53  # a draw is a whole number below this


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST, SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def draws(seed: int, start: int, count: int, device: torch.device = CPU) -> Tensor:
    """Return, on a device, the draws of `count` places from `start`: int64 from 0 to 2^53, that is u(seed, i) x 2^53 for u in [0, 1)."""
    drawn = torch.empty(count, dtype=torch.int64, device=device)
    for first in range(0, count, CHUNK):
        last = min(first + CHUNK, count)
        torch.arange(start + first + 1, start + last + 1, out=drawn[first:last])
        splitmix64(drawn[first:last], seed)
    return drawn


def splitmix64(x: Tensor, seed: int) -> None:
    """Replace each place i + 1 in x by the upper 53 bits of the generator's output there.

    Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. In signed integers: products wrap
    as unsigned ones do, and shifts are masked.
    """
    x.mul_(GOLDEN).add_(seed)
    x.bitwise_xor_(_shifted(x, 30)).mul_(FIRST)
    x.bitwise_xor_(_shifted(x, 27)).mul_(SECOND)
    x.bitwise_xor_(_shifted(x, 31))
    x.copy_(_shifted(x, 11))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)
