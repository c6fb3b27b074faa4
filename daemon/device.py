"""The device: where task vectors are folded, decomposed and read out. Files, digests and sums stay with the processor."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..plugins.rules.interface import LowRank, Slots, Update
from ..state.errors import Misconfigured

X = TypeVar("X", Tensor, LowRank, Tensor | LowRank)
CPU = "cpu"


def resolve(said: str) -> str:
    """Return the device that the setting means: `auto` is the first GPU, if there is one. Raises Misconfigured."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if said == "auto":
        return "cuda:0" if there else CPU
    if said == CPU:
        return CPU
    number = int(said.partition(":")[2] or 0)
    if number >= there:
        found = f"{there} GPUs that this torch can use" if there else "no GPU that this torch can use"
        raise Misconfigured(
            f"device is {said}, and there is {found}", 'set device to "cpu", in a new state; or mend the driver'
        )
    return f"cuda:{number}"


def send(x: X, device: str) -> X:
    """Return a tensor, or two factors, on the device; from memory that the GPU copies by itself while others work."""
    if device == CPU:
        return x
    if isinstance(x, LowRank):
        return LowRank(send(x.B, device), send(x.A, device), x.shape)
    return x.pin_memory().to(device, non_blocking=True)


def send_slots(slots: Slots, device: str) -> Slots:
    """Return slots on the device."""
    return slots if device == CPU else {name: send(tensor, device) for name, tensor in slots.items()}


def send_update(u: Update, device: str) -> Update:
    """Return one checkpoint's news on the device."""
    if device == CPU:
        return u
    whole = {survey: send_slots(found, device) for survey, found in u.whole.items()}
    return replace(u, given=send(u.given, device), extra=send_slots(u.extra, device), whole=whole)


@contextmanager
def stream_on(device: str) -> Iterator[None]:
    """Work in a queue of its own: one thread's copies go on while another's products do."""
    if device == CPU:
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        yield


def _here(x: Tensor | LowRank) -> Tensor | LowRank:
    return LowRank(x.B.cpu(), x.A.cpu(), x.shape) if isinstance(x, LowRank) else x.cpu()


class Home:
    """Brings tensors back from the device; one that is brought twice is one tensor here too."""

    def __init__(self, device: str) -> None:
        self._device, self._brought = device, dict[int, tuple[object, Tensor | LowRank]]()

    def bring(self, x: X) -> X:
        """Return a tensor, or two factors, as the processor has it."""
        if self._device == CPU:
            return x
        if id(x) not in self._brought:
            self._brought[id(x)] = x, _here(x)  # x too, so that no other tensor gets its id
        found: Any = self._brought[id(x)][1]
        return found  # type: ignore[no-any-return]

    def bring_slots(self, slots: Mapping[str, X]) -> dict[str, X]:
        """Return slots as the processor has them."""
        return {name: self.bring(tensor) for name, tensor in slots.items()}
