"""PCB-Merging in batch, transcribed in float64.

Source: arXiv 2410.02396 (NeurIPS 2024), section 3; the authors' repository duguodong7/pcb-merging, `pcb-merging.py`,
which its README names as the method's details. The two differ: the paper has two softmaxes and a hard mask of the
share r of the entries, the code an exponential times a hyperbolic tangent, and a clamp and rescale to [0, 1] in the
mask's place. This is the code's form, with its function's default ratio 0.1; lambda 1 is where its search starts.

With D entries, N task vectors, S their sum, and `clamp(x)` between two order statistics of x:
    a_i = clamp(|tau_i|) to its quantiles 0.0001 and 0.9999,  intra_i = exp(N (a_i scaled to [0, 1])^2),
    inter_i = tanh(tau_i * S),  b_i = intra_i * inter_i,
    scale_i = b_i above its quantile 1 - ratio, scaled to [0, 1],
    merged = lambda * sum_i scale_i sign(tau_i) a_i / sum_i scale_i.
It is elementwise but for the order statistics, which the authors take over the whole flattened checkpoint
(`over="model"`); mergd re-merges weight by weight (`over="weight"`, the default here): what is small in a weight of
large task vectors may be dropped there and kept here, and each weight keeps its own share `ratio`.
Where the authors divide 0 by 0 (one entry, or all entries alike) the largest entries count 1 if they are positive.
"""

import torch
from references.interface import Checkpoints
from references.repeating import repeated
from torch import Tensor

CLAMPED = 0.0001


def clamp(x: Tensor, below: float, above: float) -> Tensor:
    """Return x (D,) held between two of its own order statistics."""
    ordered = x.sort().values
    return x.clamp(ordered[int(len(x) * below)], ordered[int(len(x) * (1 - above) - 1)])


def normalize(x: Tensor) -> Tensor:
    """Return x scaled to [0, 1] by its least and largest entry."""
    if x.min() == x.max():
        return (x > 0).to(x)
    return (x - x.min()) / (x.max() - x.min())


def rescale(balancing: Tensor, ratio: float) -> Tensor:
    """Return `balancing` (D,) scaled to [0, 1] above its quantile 1 - ratio, and 0 under it."""
    clamped = clamp(balancing, 1 - ratio, 0)
    if clamped.min() == clamped.max():
        return ((balancing == balancing.max()) & (balancing > 0)).to(balancing)
    return normalize(clamped)


def pcb(taus: Tensor, ratio: float) -> Tensor:
    """Return the merged task vector (D,) of taus (N, D)."""
    total, weighted, scales = taus.sum(0), torch.zeros_like(taus[0]), torch.zeros_like(taus[0])
    for tau in taus:
        magnitude = clamp(tau.abs(), CLAMPED, CLAMPED)
        intra = (len(taus) * normalize(magnitude) ** 2).exp()
        scale = rescale(intra * torch.tanh(tau * total), ratio)
        weighted += scale * tau.sign() * magnitude
        scales += scale
    return weighted / scales.clamp(min=1e-12)


def merge(given: Checkpoints, pcb_ratio: float = 0.1, lambda_: float = 1.0, over: str = "weight") -> dict[str, Tensor]:
    names = [name for name in given.kinds if given.taus[0][name].numel()]
    empty = {name: given.taus[0][name].double() for name in given.kinds if name not in names}
    groups = [names] if over == "model" else [[name] for name in names]
    merged: dict[str, Tensor] = {}
    for group in groups:
        columns = [torch.stack([tau.flatten() for tau in repeated(given, name)]) for name in group]
        whole = lambda_ * pcb(torch.cat(columns, 1), pcb_ratio)
        parts = torch.split(whole, [column.shape[1] for column in columns])
        merged |= {name: part.reshape(given.taus[0][name].shape) for name, part in zip(group, parts, strict=True)}
    return merged | empty
