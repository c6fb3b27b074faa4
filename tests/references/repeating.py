"""What the references of the batch rules share: shares as repetition, and a weight as the matrices that it holds."""

from references.interface import Checkpoints
from torch import Tensor


def repeated(given: Checkpoints, name: str) -> list[Tensor]:
    """Return the task vectors of one weight, each as often as its share says; shares are whole numbers here."""
    counts = [int(share) for share in given.counted]
    assert counts == list(given.counted), "a reference repeats checkpoints: its shares are whole numbers"
    return [tau[name].double() for tau, count in zip(given.taus, counts, strict=True) for _ in range(count)]


def as_matrices(tensor: Tensor, kind: str) -> Tensor:
    """Return (b, m, n): a batch's matrices, the one of a matrix, or that of a convolution (m, ...)."""
    matrix = tensor.reshape(tensor.shape[0], -1) if kind == "convolution" else tensor
    return matrix.reshape(-1, *matrix.shape[-2:])


def plain(taus: list[Tensor], others: str) -> Tensor:
    """Return the merged task vector of a weight that is no matrix: the mean, the sum, or the base model's weight."""
    total = sum(taus[1:], start=taus[0])
    return total if others == "sum" else total / len(taus) if others == "mean" else total * 0
