"""mergd folds fine-tuned checkpoints of one base model, as they arrive, into one running merged model."""

from importlib.metadata import version

__version__ = version("mergd")
