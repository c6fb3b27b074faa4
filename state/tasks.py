"""The history's rows of tasks: what people asked for that takes long, until it is done, over restarts too."""

import json
from collections.abc import Mapping
from typing import Any

from sqlite_utils import Database

from .clock import utc_now
from .database import inserted
from .records import Task


class Tasks:
    """Reads and writes the table `tasks`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, verb: str, arguments: Mapping[str, Any], who: str) -> Task:
        """Record what somebody asked for."""
        row = {"verb": verb, "arguments": json.dumps(dict(arguments)), "who": who, "at": utc_now()}
        return self.get(inserted(self._db.table("tasks"), row))

    def get(self, number: int) -> Task:
        """Return one task."""
        return self._where("id = ?", number)[0]

    def waiting(self) -> list[Task]:
        """Return those that have no outcome yet, in the order in which they were asked for."""
        return self._where("outcome is null order by id")

    def begin(self, number: int) -> int:
        """Write that a task is tried; returns how often it was, without an outcome."""
        self._db.execute("update tasks set tries = tries + 1 where id = ?", [number])
        return self.get(number).tries

    def forgive(self, number: int) -> None:
        """Let a try not count: nobody is to blame for its end."""
        self._db.execute("update tasks set tries = tries - 1 where id = ?", [number])

    def end(self, number: int, outcome: str) -> None:
        """Write how a task ended."""
        self._db.table("tasks").update(number, {"outcome": outcome})

    def _where(self, condition: str, *values: Any) -> list[Task]:
        rows = self._db.table("tasks").rows_where(condition, values)
        return [Task(**dict(row) | {"arguments": json.loads(row["arguments"])}) for row in rows]
