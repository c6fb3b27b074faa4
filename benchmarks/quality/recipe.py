"""What is measured: the sets of tasks, and the seeds. Written down before anything was measured with them.

A set's tasks and everything that was tuned were looked at with the tuning seeds alone; what is reported comes from other
seeds. Of the held sets no merged model was looked at, so that no rule, scale or constant was chosen with them: they were
trained once with a tuning seed, to see that they can be learnt, and two styles of letters were made easier after that.
"""

from dataclasses import dataclass

TUNING_SEEDS = (1, 2)


@dataclass(frozen=True)
class Draw:
    """One run of a set: which base, fine-tunes and split of the data, and in which order the checkpoints arrive."""

    training: int
    order: int


def draws(*seeds: int, trainings: int | None = None) -> tuple[Draw, ...]:
    """Return a draw of each seed; of so many trainings, which take turns, where each costs minutes."""
    return tuple(Draw(seeds[i % (trainings or len(seeds))], seed) for i, seed in enumerate(seeds))


REPORTED = (101, 102, 103, 104, 105)


@dataclass(frozen=True)
class Set:
    """Tasks of one kind that are folded into one model, and others that are not, to see what is left of the base."""

    name: str
    kind: str
    tasks: tuple[str, ...]
    unseen: tuple[str, ...]  # never folded
    draws: tuple[Draw, ...]
    adapters: bool = False
    poison: str = ""  # a bad checkpoint that arrives among the others: noise, shuffled or tenfold
    guard: str = ""  # what may hold it: limits (mergd's own, as they are by default) or gate (a program); else nothing
