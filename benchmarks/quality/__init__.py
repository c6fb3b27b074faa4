"""How well merged models do their tasks: real encoders, fine-tuned on the spot, folded by the real mergd: python -m quality."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "demo"))  # its digits are the quick kind
