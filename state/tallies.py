"""What all versions together come to: counted once, then only what is new."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlite_utils import Database

from .records import CheckpointState


@dataclass(frozen=True)
class Tally:
    """Sums over every version up to `last`."""

    last: int = 0
    folds: int = 0
    last_fold_at: str = ""  # UTC, ISO 8601; empty before the first
    steps: Mapping[str, tuple[int, float]] = field(default_factory=dict)  # of folds: how many, and their seconds
    bytes_read: int = 0  # of all versions
    bytes_written: int = 0


class Tallies:
    """Reads sums over the tables `versions` and `checkpoints`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def upto_now(self, before: Tally) -> Tally:
        """Return a tally with the versions that were made since; only these are read."""
        query = """select max(number), sum(cause = 'fold'), max(case cause when 'fold' then created_at end),
            sum(bytes_read), sum(bytes_written) from versions where number > ?"""
        last, folds, at, read, written = self._db.conn.execute(query, [before.last]).fetchone()
        if last is None:
            return before
        return Tally(
            last,
            before.folds + folds,
            at or before.last_fold_at,
            self._steps(before),
            before.bytes_read + read,
            before.bytes_written + written,
        )

    def _steps(self, before: Tally) -> Mapping[str, tuple[int, float]]:
        query = """select key, count(*), sum(value) from versions, json_each(seconds)
            where number > ? and cause = 'fold' group by key"""
        steps = dict(before.steps)
        for step, times, seconds in self._db.conn.execute(query, [before.last]):
            had, took = steps.get(step, (0, 0.0))
            steps[step] = (had + times, took + seconds)
        return steps

    def oldest(self, *states: CheckpointState) -> dict[str, str]:
        """Return since when the oldest checkpoint in each of these states is in it, where there is one."""
        query = f"""select state, min(since) from checkpoints where duplicate_of is null
            and state in ({",".join("?" * len(states))}) group by state"""  # noqa: S608
        return dict(self._db.conn.execute(query, states).fetchall())
