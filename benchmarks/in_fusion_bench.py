"""Runs fusion-bench's OPCM in the package's own environment: python in_fusion_bench.py MERGED BASE CHECKPOINT...

The models are read by the package's own pool, each when its turn comes, in float32; the merged model is saved after each
step, over the one before.
"""

import sys
from pathlib import Path
from typing import Any

from fusion_bench.method.opcm.opcm_general import OPCM
from fusion_bench.modelpool import CLIPVisionModelPool


class Saving(OPCM):  # type: ignore[misc]
    """OPCM, but that each merged model is saved to one place; the package has no log folder without its own program."""

    merged: Path

    def save_merged_model(self, merged_model: Any, step: int) -> None:
        """Save the model as the package does."""
        merged_model.save_pretrained(self.merged)


def main() -> None:
    """Merge the checkpoints in their order."""
    merged, base, *checkpoints = sys.argv[1:]
    models = {"_pretrained_": base} | {f"checkpoint-{i}": folder for i, folder in enumerate(checkpoints)}
    algorithm = Saving(alpha=0.5, shuffle_order=False)
    algorithm.merged = Path(merged)
    algorithm.run(CLIPVisionModelPool(models))


if __name__ == "__main__":
    main()
