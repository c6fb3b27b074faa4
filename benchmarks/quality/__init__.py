"""How well merged models do their tasks: real encoders, fine-tuned on the spot, folded by the real mergd: python -m quality."""
