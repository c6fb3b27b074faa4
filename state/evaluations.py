"""The history's rows of what gates measured: facts about contents, whether a version, a draft or the base model has them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlite_utils import Database

from .database import transaction
from .records import Evaluation, Metric, Metrics

REST = 1000  # evaluations of what became no version that are kept
BESTS = 100  # versions of which the best on the way is kept; of others it is looked for again
_BASE = "select json_extract(value, '$') from pins where name = 'base_digest'"
_REST = f"""not exists (select 1 from versions where versions.digest = evaluations.digest)
    and digest not in ({_BASE})"""  # noqa: S608
_APPROVED = """exists (select 1 from checkpoints join decisions on content = digest
    where checkpoints.id = v.checkpoint and code = :code and verdict = 'approved')"""
_KNOWN = "exists (select 1 from bests where version = v.number and identity = :identity)"
_WAY = f"""with recursive way(number, parent, digest, known, approved) as (
    select number, parent, digest, {_KNOWN}, {_APPROVED} from versions v where number = :number
    union all
    select v.number, v.parent, v.digest, {_KNOWN}, {_APPROVED} from versions v
        join way on v.number = way.parent where not (way.known or way.approved))
    select number, digest, known, approved from way order by number desc"""  # noqa: S608


@dataclass(frozen=True)
class Leg:
    """The last leg of the way to a version: what it is, its ancestors and the base model, as far as it is to be looked at."""

    digests: Sequence[str] = ()  # oldest first; the base model's too, if the way begins there
    before: Metrics = field(default_factory=dict)  # the best of each metric on the way to there


class Evaluations:
    """Reads and writes the tables `evaluations` and `bests`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, evaluation: Evaluation) -> None:
        """Write what was measured, in the stead of what the same gate measured of the same before.

        What was the best on the ways is looked for again, if it is of what is on one already.
        """
        row = asdict(evaluation) | {"metrics": _text(evaluation.metrics)}
        with transaction(self._db):
            self._db.table("evaluations").insert(row, replace=True)
            on_a_way = f"exists (select 1 from versions where digest = :d) or :d in ({_BASE})"  # noqa: S608
            names = {"d": evaluation.digest, "identity": evaluation.identity}
            self._db.execute(f"delete from bests where identity = :identity and ({on_a_way})", names)  # noqa: S608

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

    def one(self, digest: str, identity: str) -> Metrics | None:
        """Return what was measured of one content under one identity, if it was."""
        query = "select metrics from evaluations where digest = ? and identity = ?"
        return next((_metrics(row) for row in self._db.query(query, [digest, identity])), None)

    def leg(self, number: int | None, identity: str, code: str) -> Leg:
        """Return the last leg of the way to a version: from where the best of an identity's metrics is kept.

        The way begins at the base model, or at a version whose checkpoint a person approved in spite of `code`: its
        losses were accepted.
        """
        way = list(self._db.query(_WAY, {"number": number, "identity": identity, "code": code}))
        digests, first = [row["digest"] for row in way][::-1], way[-1] if way else None
        if first and first["known"]:
            return Leg(digests[1:], self._best(first["number"], identity))
        return Leg(digests if first and first["approved"] else [*self._base(), *digests])

    def _best(self, number: int, identity: str) -> Metrics:
        query = "select metrics from bests where version = ? and identity = ?"
        return next(_metrics(row) for row in self._db.query(query, [number, identity]))

    def keep_best(self, number: int, identity: str, best: Metrics, keep: int = BESTS) -> None:
        """Keep the best of each metric on the way to a version, so that the way to a later one is short."""
        with transaction(self._db):
            row = {"version": number, "identity": identity, "metrics": _text(best)}
            self._db.table("bests").insert(row, replace=True)
            old = "select rowid from bests order by rowid desc limit -1 offset ?"
            self._db.execute(f"delete from bests where rowid in ({old})", [keep])  # noqa: S608

    def _base(self) -> list[str]:
        return [digest for (digest,) in self._db.execute(_BASE)]


def _text(metrics: Metrics) -> str:
    return json.dumps({name: asdict(metric) for name, metric in metrics.items()})


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    return Evaluation(**dict(row) | {"metrics": _metrics(row)})


def _metrics(row: Mapping[str, Any]) -> dict[str, Metric]:
    return {name: Metric(**metric) for name, metric in json.loads(row["metrics"]).items()}
