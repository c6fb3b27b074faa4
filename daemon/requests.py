"""What a person may ask of a merge: typed requests, each carried out by one function, with or without a daemon."""

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..state.committing import Commit
from ..state.errors import Busy, Damaged, Refused, Unavailable, Usage
from ..state.history import History
from ..state.records import Checkpoint, Version
from ..state.store import Store
from ..state.wording import cut, quoted
from .naming import absolute, find_checkpoint, find_version

if TYPE_CHECKING:  # the client side of the socket needs no torch
    from ..plugins.sources.interface import Sight
    from .intake import Intake


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_max_length=4096)


class Rollback(_Request):
    """Move the head to a version; without one, to where it was before."""

    verb: Literal["rollback"] = "rollback"
    version: str | None = None
    pause: bool = False


class Pause(_Request):
    """Stop moving the head."""

    verb: Literal["pause"] = "pause"
    why: str = ""


class Resume(_Request):
    """Go on moving the head."""

    verb: Literal["resume"] = "resume"


class Fold(_Request):
    """Fold these now, in this order."""

    verb: Literal["fold"] = "fold"
    checkpoints: tuple[str, ...] = Field(max_length=10_000)
    again: bool = False


Names = Annotated[tuple[str, ...], Field(min_length=1, max_length=10_000)]


class Approve(_Request):
    """Lift the reasons for which these are held; each is folded when its turn comes."""

    verb: Literal["approve"] = "approve"
    checkpoints: Names


class Refuse(_Request):
    """Refuse a checkpoint that is not folded, whatever the gates say."""

    verb: Literal["refuse"] = "refuse"
    checkpoint: str
    why: str = Field(min_length=1)


class Retry(_Request):
    """Take a refusal back: the checkpoint is looked at again from the start."""

    verb: Literal["retry"] = "retry"
    checkpoint: str


class Tag(_Request):
    """Give a version a name, which keeps it; one that another version has only with `force`."""

    verb: Literal["tag"] = "tag"
    name: str
    version: str = "head"
    force: bool = False


class Untag(_Request):
    """Take a name away from its version."""

    verb: Literal["untag"] = "untag"
    name: str


class Gc(_Request):
    """Drop now what retention lets go."""

    verb: Literal["gc"] = "gc"


class Remove(_Request):
    """Make a version without a checkpoint; `plan`: only say what that would mean."""

    verb: Literal["remove"] = "remove"
    checkpoint: str
    exact: bool = False
    plan: bool = False


class Replay(_Request):
    """Make the files of a version once more; `check`: only to hold them against what it is; `plan`: only say how."""

    verb: Literal["replay"] = "replay"
    version: str
    check: bool = False
    plan: bool = False


class _Reading(_Request):
    """By which rule, and how scaled, a version is to be read; what is None stays as it is at the head."""

    rule: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    scale: Literal["rule", "mean-norm"] | Annotated[float, Field(allow_inf_nan=False)] | None = None
    lines: dict[Literal["alpha", "beta"], Annotated[float, Field(allow_inf_nan=False)]] | None = None
    plan: bool = False


class Publish(_Reading):
    """Make a version of what is kept, read out otherwise; `plan`: only say what that would mean."""

    verb: Literal["publish"] = "publish"


class Remerge(_Reading):
    """Make a version by merging anew the checkpoints in the model that are still at their sources."""

    verb: Literal["remerge"] = "remerge"


class Verify(_Request):
    """Read the files of a version, or of all, again, and hold the database against the folders."""

    verb: Literal["verify"] = "verify"
    version: str | None = None


class Look(_Request):
    """Say whether the daemon can read what lies at a place; changes nothing."""

    verb: Literal["look"] = "look"
    place: str


AnyRequest = (
    Rollback | Pause | Resume | Fold | Approve | Refuse | Retry | Tag | Untag | Gc | Remove | Replay | Publish | Remerge
    | Verify | Look
)  # fmt: skip
AnyTask = Remove | Replay | Publish | Remerge
REQUEST: TypeAdapter[AnyRequest] = TypeAdapter(Annotated[AnyRequest, Field(discriminator="verb")])
PREEMPTING = (Rollback, Pause, Refuse)  # these abandon a running fold, whose checkpoint waits again
LONG = (
    "fold",
    "remove",
    "replay",
    "publish",
    "remerge",
)  # verbs of requests that need the whole loop, not the history alone


def parse(line: bytes) -> AnyRequest:
    """Return the request in one line of JSON. Raises Usage."""
    try:
        return REQUEST.validate_json(line)
    except ValidationError as error:
        raise Usage(f"not a request: {cut(error.errors()[0]['msg'])}") from None


def rollback(request: Rollback, history: History, store: Store, hooks: list[str], who: str) -> dict[str, Any]:
    """Move the head and the link; nothing is rewritten. Says which checkpoints that takes out of the model."""
    head = history.head()
    if head is None:
        raise Usage("there is no version yet", "fold a checkpoint first")
    target = find_version(history, request.version) if request.version else _before(history, head)
    _check_target(target, history, store)
    if request.pause:
        history.pause(who, f"rolled back to {target}")
    if target.number != head.number:
        history.move_head(target.number, who, "rollback", hooks)
    _follow(Commit(store, history), target)
    return {
        "head": target.number,
        "before": head.number,
        "out": taken_out(history, head, target),
        "back": [item["name"] for item in taken_out(history, target, head)],
        "paused": request.pause,
        "slots_kept": target.slots_kept,
    }


def _follow(commit: Commit, head: Version) -> None:
    """Let the link follow the head, which has moved by now, perhaps before a crash."""
    try:
        commit.link()
    except OSError as error:
        hint = f"a running daemon tries again by itself; else: mergd rollback {head}"
        raise Unavailable(f"the head is {head} now, but models/current cannot follow it yet: {error}", hint) from error


def _check_target(target: Version, history: History, store: Store) -> None:
    """Raise Usage if a version's files were dropped, Damaged if they are known to be damaged or do not look as written.

    Nothing is read: sizes and times are trusted, and what was found when they were last read.
    """
    if not target.model_kept:
        raise Usage(f"the files of {target} were dropped by retention", f"kept are: {_kept(history)}")
    others = [version for version in history.besides_head() if version.number != target.number]
    hint = f"nearest sound one: mergd rollback {others[0]}" if others else "bring its files back, then mergd verify"
    if target.damaged is not None:
        raise Damaged(f"{target} is damaged: {target.damaged}", hint)
    if not store.whole(target.number):
        raise Damaged(f"the files of {target} are not as they were written", hint)
    if changed := store.changed(target.stamps, "model"):
        hint = (
            f"to have them read: mergd verify {target}; it says whether {target} is sound, and then you can roll back"
        )
        raise Damaged(f"{target} was touched since it was written: {', '.join(changed)}", hint)


def _before(history: History, head: Version) -> Version:
    before = history.moves(1)[0].from_version
    version = history.version(before) if before is not None else None
    if version is None:
        raise Usage(f"{head} is the first version: there is nothing before it", "see: mergd log")
    return version


def _kept(history: History) -> str:
    return ", ".join(str(version) for version in history.with_files() if version.kept)


def taken_out(history: History, head: Version, target: Version) -> list[dict[str, Any]]:
    """Return the checkpoints that were in the model at `head` and are not at `target`, in the order of their folds."""
    stay = set(history.recipe(target.number))
    folded = {version.checkpoint: version.number for version in history.lineage(head.number)}
    rows = [history.checkpoints.get(row) for row in history.recipe(head.number) if row not in stay]
    return [{"name": r.name, "version": folded[r.id], "place": r.place, "digest": r.digest} for r in rows]


def pause(request: Pause, history: History, who: str) -> dict[str, Any]:
    """Stop moving the head by itself; kept over restarts."""
    history.pause(who, request.why)
    return {"paused": history.paused()}


def resume(history: History) -> dict[str, Any]:
    """Go on moving the head by itself."""
    return {"was_paused": history.resume()}


def queue(request: Fold, history: History, store: Store, intake: "Intake", sight: "Sight") -> list[int]:
    """Put checkpoints before all others, in this order; returns their rows. Nothing is queued unless all can be."""
    paused = history.paused()
    if paused:
        raise Busy(f"folding is paused since {paused['since']} ({paused['why'] or 'no reason given'})", "mergd resume")
    places = [_place_of(text, history, store, sight) for text in request.checkpoints]
    with history.all_or_nothing():
        rows = [_row_to_fold(place, request.again, history, intake, sight) for place in places]
        for row in rows:
            history.checkpoints.hurry(row.id)
            if row.state not in ("ready", "settling"):
                history.checkpoints.make_ready(row.id)
    return [row.id for row in rows]


def _place_of(text: str, history: History, store: Store, sight: "Sight") -> str:
    place = absolute(text)
    if not os.path.lexists(place):
        row = find_checkpoint(history, text)
        if row.digest and row.digest.startswith(text):
            _check_commit(row, sight)
        return row.place
    if place.resolve().is_relative_to(store.root.resolve()):
        raise Usage(f"{place} is mergd's own", "a merged model is not folded into itself")
    return str(place)


def _check_commit(row: Checkpoint, sight: "Sight") -> None:
    """Raise Unavailable where a content is named whose repository holds another one by now."""
    now = sight(row.place)
    if now is not None and now.revision and now.revision != row.fingerprint:
        found = f"{row.name} is at commit {now.revision[:12]} now, and that content was {row.fingerprint[:12]}"
        raise Unavailable(found, f"to fold what is there now: mergd fold {quoted(row.place)}")


def _row_to_fold(place: str, again: bool, history: History, intake: "Intake", sight: "Sight") -> Checkpoint:
    sighting = sight(place)
    if sighting is None:
        raise Usage(f"{place} is gone, or no checkpoint", "mergd check PATH says more")
    row = intake.row_of(sighting)
    if row.state == "folded":
        _check_again(row, again, history)
        row = history.checkpoints.add(sighting)  # a version holds on to the row that it was folded from
    if row.state in ("held", "refused"):
        history.checkpoints.set_state(row.id, "settling")
    intake.take(sighting, now=True)
    row = history.checkpoints.get(row.id)
    if row.state in ("refused", "held", "blocked"):
        raise Refused(*row.reasons)
    if row.state == "settling" and not sighting.revision:  # what lies elsewhere is brought here first
        raise Busy(f"{row.name} waits for {intake.waits.get(row.id, 'its files')}", "mergd check PATH")
    return row


def _check_again(row: Checkpoint, again: bool, history: History) -> None:
    head = history.head()
    for version in history.lineage(head.number if head else None):
        if not version.is_known:
            raise Usage(f"what made {version} is not known: {row.name} may be in the model", "see: mergd log")
    if row.digest and history.checkpoint_in_line(row.digest, head.number if head else None):
        raise Usage(f"{row.name} is in the model already", "the same content counts once")
    if not again:
        raise Usage(
            f"{row.name} was folded and then rolled away", f"to have it back: mergd fold --again {quoted(row.place)}"
        )
