"""Checking a checkpoint before it is dropped: the verdict that it would get now, and whether the daemon can read it."""

from pathlib import Path
from typing import Any

from ..plugins.formats.interface import Candidate
from ..plugins.sources.directory import Directory, evidence
from ..state.errors import Busy, MergdError, Refused, Unavailable, Usage
from ..state.lock import holder_of
from ..state.records import ADMITTED, Checkpoint, Drafted, Sighting, Verdict
from ..state.store import Store
from . import control
from .admission import Admission
from .asking import history_of, open_history, said_by, store_of, store_to_look_at
from .base import Base, locate, open_base
from .blocks import machine_of
from .drafting import head_at
from .folding import fold
from .judging import Known, judged, known_content, seen_here
from .machine import settle_threads
from .method import Method, method_of
from .naming import absolute
from .opening import Merge, check_pins, make_sane
from .progress import Progress
from .requests import Look
from .settings import Settings
from .sidecar import counted
from .worker import job_for

PINS = ("base_digest", "base_commit", "tied")  # that headers are compared by


def check(settings: Settings, path: Path, deep: bool, progress: Progress) -> dict[str, Any]:
    """Return the verdict on a checkpoint, from its headers or, if `deep`, from all of it. Writes nothing anywhere.

    `decision` is admitted, refused, held, known or incomplete; `share` is what it would count; `daemon` says what the
    running daemon cannot read.
    Headers are read as whoever asks, who need not be the state's owner. Raises NotPermitted where they cannot be.
    """
    place, store = absolute(path), store_to_look_at(settings)
    sighting = Directory(place.parent).sight(place)
    if sighting is None:
        raise Usage(f"there is no checkpoint at {path}", "give a model folder or a .safetensors file")
    base = _base(settings, store, deep)
    try:
        candidate, answer = _of_headers(sighting, Admission(base, settings, _method(settings, store)))
        counts = counted(place, settings)
        if counts.doubt is not None and answer["decision"] == "admitted":
            answer = _answer(Verdict("held", (counts.doubt,)))
        daemon = _ask_daemon(store, place)
        if deep and candidate is not None and answer["decision"] == "admitted":
            answer = _of_content(settings, sighting, candidate, base, progress)
    except Busy as error:
        return _incomplete(str(error), error.hint) | {"share": None, "daemon": None}
    return answer | {"share": counts.share, "daemon": daemon}


def _base(settings: Settings, store: Store, deep: bool) -> Base:
    """Return the base model, for headers by what everybody is told: its norms are in the history alone."""
    pins = {"base_norms": {}, "convolutions": settings.convolutions} | said_by(store)
    if deep or any(key not in pins for key in PINS):
        with history_of(settings) as history:
            pins = history.pins()
        if "base_norms" not in pins or "convolutions" not in pins:
            raise Unavailable(f"{settings.state} is an older mergd's", "to bring it up to date: mergd run --once")
    place, _ = locate(settings.base_model, pins["base_commit"])
    return open_base(place, pins)


def _method(settings: Settings, store: Store) -> Method:
    """Return how the next checkpoint is folded: by the head's method; for who may not look into the history, as init pinned."""
    try:
        with open_history(store) as history:
            head = history.head()
    except MergdError:
        head = None
    return method_of(head.method if head and head.method else settings.method)


def _of_headers(sighting: Sighting, admission: Admission) -> tuple[Candidate | None, dict[str, Any]]:
    if unfinished := evidence.gather(sighting).unfinished:
        return None, _incomplete(f"{unfinished} to be finished")
    candidate, verdict = admission.examine(sighting)
    return candidate, _answer(verdict)


def _of_content(
    settings: Settings, sighting: Sighting, candidate: Candidate, base: Base, progress: Progress
) -> dict[str, Any]:
    """Read all of it as a fold would, and have it judged by the built-in gate."""
    settle_threads(1)
    store = store_of(settings)
    with history_of(settings) as history:
        method = method_of(settings.method)
        check_pins(settings, method, history.pins())
        row, merge = _row(sighting), Merge(base, method, make_sane(settings), {}, {})
        job = job_for(row, candidate, history, settings)
        method = merge.method_at(job.start.parent)
        head = head_at(job.start.parent, store, published=method.is_costly(base.weights))
        try:
            result = fold(
                base, candidate, head, method, None, machine_of(settings, base, method), progress, share=job.share
            )
        except Refused as refusal:
            return _answer(Verdict("refused", refusal.reasons))
        progress.end()
        seen = seen_here(job, result.digest, settings.on_change) if job.folded_here else None
        outcome = seen or judged(job, result, merge)
        if isinstance(outcome, Known):
            first = history.checkpoints.holding(outcome.digest) or row
            return _answer(Verdict("admitted", (known_content(row, first),))) | {"decision": "known"}
    return _answer(ADMITTED if isinstance(outcome, Drafted) else outcome.verdict)


def _row(sighting: Sighting) -> Checkpoint:
    """Return the row that a sighting would get."""
    place, fingerprint = sighting.place, sighting.fingerprint
    return Checkpoint(0, sighting.source, place, sighting.name, fingerprint, "ready", "", owner=sighting.owner)


def _answer(verdict: Verdict) -> dict[str, Any]:
    return {"decision": verdict.decision, "waits_for": "", "reasons": [vars(reason) for reason in verdict.reasons]}


def _incomplete(waits_for: str, hint: str = "") -> dict[str, Any]:
    return {"decision": "incomplete", "waits_for": waits_for, "hint": hint, "reasons": []}


def _ask_daemon(store: Store, place: Path) -> dict[str, Any] | None:
    """Return who the running daemon is and what it cannot read; None if none runs, or if we may not ask it."""
    holder = holder_of(store.lock)
    if not holder or not holder.get("socket"):
        return None
    try:
        return control.ask(Path(holder["socket"]), Look(place=str(place)), lambda text: None)
    except MergdError:
        return None
