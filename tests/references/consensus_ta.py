"""Consensus Task Arithmetic with TALL masks, in batch, transcribed in float64.

Source: arXiv 2405.07813 (ICML 2024), sections 4 and 5; the authors' repository nik-dim/tall_masks,
`src/utils/tallmask_utils.py`. With tau = sum_i tau_i:
    m_i = 1 where |tau_i| > tall_mask_lambda |tau - tau_i|  (TALL mask of task i, elementwise),
    merged = lambda tau where sum_i m_i >= prun_thre_k, else 0.
Elementwise, so that whole checkpoints and single weights give the same. The authors choose tall_mask_lambda for each
task in 0.2 .. 0.6, and lambda, on validation data: without it there are one 0.6 for all (FusionBench,
`config/method/tall_mask`) and task arithmetic's 0.3. A threshold above the number of checkpoints would give the base
model: it counts as that number here, so that a lone checkpoint is lambda times itself.
"""

import torch
from references.interface import Checkpoints
from references.repeating import repeated
from torch import Tensor


def merge(
    given: Checkpoints, prun_thre_k: int = 2, tall_mask_lambda: float = 0.6, lambda_: float = 0.3
) -> dict[str, Tensor]:
    merged = {}
    for name in given.kinds:
        taus = torch.stack(repeated(given, name))
        total = taus.sum(0)
        masks = taus.abs() > tall_mask_lambda * (total - taus).abs()
        merged[name] = lambda_ * total * (masks.sum(0) >= min(prun_thre_k, len(taus)))
    return merged
