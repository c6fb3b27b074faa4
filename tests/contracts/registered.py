"""The fold rules that mergd registers, each as it is by default and with each choice of its parameters."""

from importlib.metadata import entry_points

from contracts.rule import examples_of

from mergd.plugins.rules.batch_interface import is_batch

OURS = [entry for entry in entry_points(group="mergd.rules") if entry.value.startswith("mergd.")]
NAMES = {entry.load(): entry.name for entry in OURS if not is_batch(entry.load())}
REGISTERED = [rule for kind in NAMES for rule in examples_of(kind)]
