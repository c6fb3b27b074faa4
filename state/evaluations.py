"""The history's rows of what gates measured: facts about contents, whether a version, a draft or the base model has them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlite_utils import Database

from .database import LINE
from .records import Evaluation, Metric, Metrics

REST = 1000  # evaluations of what became no version that are kept
_REST = """not exists (select 1 from versions where versions.digest = evaluations.digest)
    and digest not in (select json_extract(value, '$') from pins where name = 'base_digest')"""


class Evaluations:
    """Reads and writes the table `evaluations`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, evaluation: Evaluation) -> None:
        """Write what was measured, in the stead of what the same gate measured of the same before."""
        row = asdict(evaluation) | {"metrics": json.dumps({name: asdict(m) for name, m in evaluation.metrics.items()})}
        self._db.table("evaluations").insert(row, replace=True)

    def prune(self, keep: int = REST) -> None:
        """Let go of all but the newest evaluations of what became no version."""
        oldest = f"select rowid from evaluations where {_REST} order by rowid desc limit -1 offset ?"  # noqa: S608
        self._db.execute(f"delete from evaluations where rowid in ({oldest})", [keep])  # noqa: S608

    def of(self, digest: str) -> dict[str, Evaluation]:
        """Return the newest evaluation of a content by each gate, by the gate's name."""
        rows = self._db.table("evaluations").rows_where("digest = ?", [digest], order_by="rowid")
        return {row["gate"]: _evaluation(row) for row in rows}

    def by(self, identity: str) -> dict[str, Metrics]:
        """Return all that was measured under one identity, by the digest of what it was of."""
        rows = self._db.query("select digest, metrics from evaluations where identity = ?", [identity])
        return {row["digest"]: _metrics(row) for row in rows}

    def way(self, number: int | None, code: str) -> list[str]:
        """Return the digests of what leads to a version, newest first: it, its ancestors, and the base model.

        Only back to a version whose checkpoint a person approved in spite of `code`: its losses were accepted.
        """
        query = f"""{LINE} select versions.digest, checkpoints.digest in (
                select content from decisions where code = ? and verdict = 'approved') as approved from line
            join versions on number = n left join checkpoints on checkpoints.id = versions.checkpoint
            order by number desc"""  # noqa: S608
        way: list[str] = []
        for row in self._db.query(query, [number, code]):
            way.append(row["digest"])
            if row["approved"]:
                return way
        return [*way, *self._base()]

    def _base(self) -> list[str]:
        rows = self._db.query("select json_extract(value, '$') as digest from pins where name = 'base_digest'")
        return [row["digest"] for row in rows]


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    return Evaluation(**dict(row) | {"metrics": _metrics(row)})


def _metrics(row: Mapping[str, Any]) -> dict[str, Metric]:
    return {name: Metric(**metric) for name, metric in json.loads(row["metrics"]).items()}
