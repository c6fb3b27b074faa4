"""The tables of the history, as migrations: one small function each, in one transaction, never changed once released."""

from sqlite_utils import Database, Migrations

migrations = Migrations("mergd")


@migrations()
def m001_pins_and_requests(db: Database) -> None:
    """What init fixed for good, and what people asked for."""
    db.table("pins").create({"name": str, "value": str}, pk="name", not_null={"value"}, strict=True)  # value: JSON
    db.table("requests").create(
        {"id": int, "verb": str, "arguments": str, "who": str, "at": str, "answer": str},
        pk="id",
        not_null={"verb", "arguments", "who", "at"},
        strict=True,
    )
    db.table("pauses").create(
        {"id": int, "why": str, "who": str, "at": str, "resumed_at": str},
        pk="id",
        not_null={"why", "who", "at"},
        strict=True,
    )


@migrations()
def m002_checkpoints(db: Database) -> None:
    """Where checkpoints were seen, what became of them, and each try to fold one."""
    db.table("checkpoints").create(
        {
            "id": int,
            "source": str,
            "place": str,
            "name": str,
            "fingerprint": str,
            "state": str,
            "since": str,
            "reasons": str,  # JSON list
            "digest": str,
            "order": int,
            "urgent": int,
            "duplicate_of": int,
        },
        pk="id",
        not_null={"source", "place", "name", "fingerprint", "state", "since", "reasons"},
        foreign_keys=[("duplicate_of", "checkpoints", "id")],
        strict=True,
    )
    db.table("checkpoints").create_index(["source", "place"])
    db.table("checkpoints").create_index(["digest"])
    db.table("checkpoints").create_index(["state", "urgent", "order"])
    db.table("attempts").create(
        {"id": int, "checkpoint": int, "started_at": str, "outcome": str},
        pk="id",
        not_null={"checkpoint", "started_at"},
        foreign_keys=[("checkpoint", "checkpoints", "id")],
        strict=True,
    )
    db.table("attempts").create_index(["checkpoint"])


@migrations()
def m003_versions(db: Database) -> None:
    """The versions, the moves of the head, and what the hooks are owed."""
    db.table("versions").create(
        {
            "number": int,
            "parent": int,
            "cause": str,
            "checkpoint": int,
            "rule": str,
            "folded": int,
            "shares": float,
            "mean_norm": float,
            "readout_norm": float,
            "scale": float,
            "digest": str,
            "created_at": str,
            "seconds": str,  # JSON object by step
            "bytes_read": int,
            "bytes_written": int,
            "slots_kept": int,
            "model_kept": int,
            "weights": bytes,  # packed reports, in the order of the pinned weight names
        },
        pk="number",
        not_null={"cause", "rule", "folded", "scale", "digest", "created_at", "slots_kept", "model_kept"},
        foreign_keys=[("parent", "versions", "number"), ("checkpoint", "checkpoints", "id")],
        strict=True,
    )
    db.table("versions").create_index(["checkpoint"])
    db.table("moves").create(
        {"id": int, "from_version": int, "to_version": int, "who": str, "why": str, "at": str},
        pk="id",
        not_null={"to_version", "who", "why", "at"},
        foreign_keys=[("from_version", "versions", "number"), ("to_version", "versions", "number")],
        strict=True,
    )
    db.table("tellings").create(
        {"hook": str, "move": int, "told_at": str},
        pk=("hook", "move"),
        foreign_keys=[("move", "moves", "id")],
        strict=True,
    )


@migrations()
def m004_replaces(db: Database) -> None:
    """Which checkpoint a later step of the same run, or new content at the same place, stands in for."""
    db.table("checkpoints").add_column("replaces", int, fk="checkpoints", fk_col="id")


@migrations()
def m005_contributions_and_decisions(db: Database) -> None:
    """What later checkpoints are judged by, who owns which, and what people decided."""
    db.table("checkpoints").add_column("owner", str)
    db.table("contributions").create(
        {"version": int, "contributor": str, "norm": float, "sketch": bytes},
        pk="version",
        not_null={"contributor", "norm", "sketch"},
        foreign_keys=[("version", "versions", "number")],
        strict=True,
    )
    db.table("decisions").create(
        {"id": int, "content": str, "verdict": str, "code": str, "why": str, "who": str, "at": str},
        pk="id",
        not_null={"content", "verdict", "code", "why", "who", "at"},
        strict=True,
    )


@migrations()
def m006_causes_tags_and_tasks(db: Database) -> None:
    """What made a version that no fold made, what is known of its files, its tags, and the work that makes others."""
    versions = db.table("versions")
    versions.add_column("removed", int, fk="checkpoints", fk_col="id")
    for name in ("arguments", "gates", "stamps"):  # JSON
        versions.add_column(name, str)
    for name in ("checked_at", "damaged"):
        versions.add_column(name, str)
    db.table("tags").create(
        {"name": str, "version": int, "who": str, "at": str},
        pk="name",
        not_null={"version", "who", "at"},
        foreign_keys=[("version", "versions", "number")],
        strict=True,
    )
    db.table("tasks").create(
        {"id": int, "verb": str, "arguments": str, "who": str, "at": str, "tries": int, "outcome": str},
        pk="id",
        not_null={"verb", "arguments", "who", "at", "tries"},
        defaults={"tries": 0},
        strict=True,
    )


@migrations()
def m007_weight_reports(db: Database) -> None:
    """What each fold did to each weight, in a table of its own: whoever reads versions shall not read past it."""
    db.table("weight_reports").create(
        {"version": int, "packed": bytes},  # in the order of the pinned weight names
        pk="version",
        not_null={"packed"},
        foreign_keys=[("version", "versions", "number")],
        strict=True,
    )
    db.execute("insert into weight_reports select number, weights from versions where weights is not null")
    db.execute("alter table versions drop column weights")


@migrations()
def m008_methods(db: Database) -> None:
    """How a version is folded onto, where that is not what init pinned: after a read-out by another rule, or a re-merge."""
    db.table("versions").add_column("method", str)  # JSON


@migrations()
def m009_files(db: Database) -> None:
    """What a source said that a checkpoint's files hold, so that a new commit of the same weights is not fetched."""
    db.table("checkpoints").add_column("files", str)


@migrations()
def m010_pushes(db: Database) -> None:
    """What was pushed to which repository of the Hub, and which checkpoints everybody may see anyway."""
    db.table("checkpoints").add_column("public", int)
    db.table("pushes").create(
        {"move": int, "version": int, "repository": str, "commit": str, "at": str},
        pk=("repository", "move"),
        not_null={"version", "commit", "at"},
        foreign_keys=[("move", "moves", "id"), ("version", "versions", "number")],
        strict=True,
    )
    db.table("pushes").create_index(["version"])


@migrations()
def m011_notices(db: Database) -> None:
    """What the hooks of the configuration are told, how far each of them is, and what could not be delivered."""
    db.table("notices").create(
        {
            "seq": int,
            "id": str,
            "kind": str,
            "from_version": int,
            "to_version": int,
            "who": str,
            "why": str,
            "path": str,
            "digest": str,
            "at": str,
        },
        pk="seq",
        not_null={"id", "kind", "who", "why", "path", "at"},
        strict=True,
    )
    db.table("hooks").create({"name": str, "done": int}, pk="name", not_null={"done"}, strict=True)  # done: up to here
    db.table("undelivered").create(
        {"hook": str, "notice": int, "why": str, "at": str},
        pk=("hook", "notice"),
        not_null={"why", "at"},
        foreign_keys=[("hook", "hooks", "name"), ("notice", "notices", "seq")],
        strict=True,
    )


@migrations()
def m012_evaluations(db: Database) -> None:
    """What gates measured, by the digest of the model and by what measured it; and the best on the way to some versions."""
    db.table("evaluations").create(
        {"digest": str, "identity": str, "gate": str, "metrics": str, "seconds": float, "at": str},  # metrics: JSON
        pk=("digest", "identity"),
        not_null={"gate", "metrics", "seconds", "at"},
        strict=True,
    )
    db.table("evaluations").create_index(["identity"])
    db.table("bests").create(
        {"version": int, "identity": str, "metrics": str},  # metrics: JSON
        pk=("version", "identity"),
        not_null={"metrics"},
        foreign_keys=[("version", "versions", "number")],
        strict=True,
    )
    db.table("versions").create_index(["digest"])


@migrations()
def m013_licences_and_owed_news(db: Database) -> None:
    """Which licence a checkpoint's owner claims; and what is owed is found without reading what was told."""
    db.table("checkpoints").add_column("licence", str)
    db.execute("create index tellings_owed on tellings (hook, move) where told_at is null")


@migrations()
def m014_bytes(db: Database) -> None:
    """How much a checkpoint's files were, so that it can be said what fetching them again costs."""
    db.table("checkpoints").add_column("nbytes", int)
