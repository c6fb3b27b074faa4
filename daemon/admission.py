"""Admission: from headers alone, does this belong to the base model? It admits, or refuses with every reason there is."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..plugins.formats.interface import Candidate, Contents, Part, Whole
from ..state.errors import MergdError, Refused
from ..state.headers import COUNTING, FLOATING
from ..state.records import ADMITTED, Reason, Sighting, Verdict
from ..state.wording import quoted, shown, size
from .base import Base, read_contents
from .links import link_elsewhere
from .matching import SHOWN, Match, closest, match, rename_hint, some
from .method import Method
from .settings import Settings
from .shipped import Looking

log = logging.getLogger(__name__)

BY_SETTING = ("missing-weights", "extra-weights", "vocabulary", "nothing-changed")  # a setting would let them pass
ROOM = 64 * 2**20  # bytes of tensors beside the weights that are let through, however small the base model is


@dataclass(frozen=True)
class Admission:
    """Who may be folded into one merge."""

    base: Base
    settings: Settings
    method: Method | None = None  # what it needs must be shipped; none: nothing
    earlier: tuple[Method, ...] = ()  # methods, of which what they need is taken where it is shipped

    def examine(self, sighting: Sighting) -> tuple[Candidate | None, Verdict]:
        """Return the candidate that lies at a sighting's place, and the verdict on its headers.

        Raises Busy while it is not complete, and NotPermitted where it cannot be read: neither is a verdict.
        """
        try:
            return self._examine(sighting, sighting.here)
        except Refused as refusal:
            return None, Verdict("refused", refusal.reasons)
        except MergdError:
            raise
        except Exception as error:
            log.exception("%s could not be examined", sighting.name)
            return None, Verdict("refused", (_unforeseen(error),))

    def _examine(self, sighting: Sighting, place: Path) -> tuple[Candidate | None, Verdict]:
        contents = read_contents(place, self.most_tensors)
        if link := link_elsewhere(place, contents.layout.files):
            return None, Verdict("refused", (link,))
        found = match(contents, self.base, self.settings, place)
        candidate = Candidate(
            sighting.place,
            sighting.name,
            contents,
            found.parts,
            sighting.stamps,
            aliases=found.aliases,
            folder=sighting.folder,
            feed=sighting.feed,
        )
        verdict = self.judge(contents, found)
        if verdict == ADMITTED:
            candidate, verdict = self._with_shipped(candidate)
        return candidate, Verdict(
            verdict.decision, tuple(_then_again(reason, sighting.place) for reason in verdict.reasons)
        )

    def _with_shipped(self, candidate: Candidate) -> tuple[Candidate, Verdict]:
        """Add what the method needs besides the weights; refuse where it is not there."""
        methods, weights = [(self.method,) if self.method else (), self.earlier], self.base.weights
        needs, besides = ({w.name: {n for m in each for n in m.needs((w,))} for w in weights} for each in methods)
        looking = Looking(self.base, self.settings, self.most_tensors, needs, besides)
        shipped, reasons = looking.beside(candidate.here, candidate.parts.keys())
        return replace(candidate, shipped=shipped), Verdict("refused", tuple(reasons)) if reasons else ADMITTED

    @property
    def most_tensors(self) -> int:
        """How many tensors a checkpoint may have; one that has more is refused before they cost memory."""
        ours = len(self.base.layout.tensors)
        return max(4 * ours, ours + 1000)

    def judge(self, contents: Contents, found: Match) -> Verdict:
        """Refuse with every reason there is."""
        if quantised := _quantised(contents):
            return Verdict("refused", (quantised,))  # its names and shapes follow from that
        checks: tuple[Callable[[Match], Reason | None], ...] = (_missing, _extra, _shapes, _vocabulary, _twice)
        reasons = [reason for check in checks if (reason := check(self._allowed(found)))]
        reasons += [reason for reason in (_dtypes(contents, found), _beside(contents, self.base)) if reason]
        if not reasons and not found.parts:
            what = "no weight of the base model in it"
            reasons = [Reason("nothing-changed", what, "weights that were trained", "look at skip and rename")]
        return Verdict("refused", tuple(reasons)) if reasons else ADMITTED

    def _allowed(self, found: Match) -> Match:
        """Return the match without what the settings let pass."""
        missing = found.missing if self.settings.missing == "refuse" else []
        extra = found.extra if self.settings.extra == "refuse" else []
        return Match(found.parts, found.aliases, missing, extra, found.twice, found.shapes, found.vocabulary)


def _unforeseen(error: Exception) -> Reason:
    """Return the reason that a format, which may be anybody's, failed: one checkpoint must not end the daemon."""
    found = f"what its format failed at ({type(error).__name__}: {shown(error)})"
    return Reason("format-failed", found, "what the format can read", "tell whoever made the format; the log says more")


def _then_again(reason: Reason, place: str) -> Reason:
    """Add how a checkpoint is looked at again once a setting was changed as its reason says."""
    if reason.code not in BY_SETTING:
        return reason
    return replace(reason, next_step=f"{reason.next_step}; then: mergd retry {quoted(place)}")


def _missing(found: Match) -> Reason | None:
    if not found.missing:
        return None
    of = len(found.missing) + len(found.parts) + len(found.shapes) + len(found.vocabulary)
    hint = rename_hint(found.missing, found.extra)
    next_step = (
        f"if its names differ only so, add to [rename]: {hint}" if hint else "save the whole model, not a part of it"
    )
    return Reason(
        "missing-weights",
        f"{len(found.missing)} of {of} weights missing: {some(_with_closest(found.missing, found.extra))}",
        "every weight of the base model",
        f'{next_step}; or set missing = "zero-delta" to keep the base model\'s',
    )


def _extra(found: Match) -> Reason | None:
    if not found.extra:
        return None
    return Reason(
        "extra-weights",
        f"{len(found.extra)} weights that the base model has not: {some(_with_closest(found.extra, found.missing))}",
        "the base model's weights alone",
        'save without added heads; or set skip = ["classifier.*"] for such names, or extra = "ignore" for all',
    )


def _with_closest(names: list[str], others: list[str]) -> list[str]:
    """Return the names that will be shown, each with the one on the other side that is most like it."""
    close = [closest(name, others) for name in names[:SHOWN]]
    return [f"{name} (there is {like})" if like else name for name, like in zip(names, close, strict=False)] + names[
        SHOWN:
    ]


def _shapes(found: Match) -> Reason | None:
    if not found.shapes:
        return None
    wrong = [f"{name} {_shape_of(part)} for {list(weight.shape)}" for name, part, weight in found.shapes]
    return Reason("shape", some(wrong), "the base model's shapes", "fine-tune this base model, not one like it")


def _shape_of(part: Part) -> list[int]:
    """Return the shape that a part would fit, as far as it says so."""
    shape: tuple[int, ...] = getattr(part, "product", getattr(part, "shape", ()))
    return list(shape)


def _vocabulary(found: Match) -> Reason | None:
    if not found.vocabulary:
        return None
    wrong = [f"{name} has {rows} rows for {ours}" for name, rows, ours in found.vocabulary]
    next_step = 'set vocabulary = "base-rows" to fold the rows that both have'
    return Reason("vocabulary", some(wrong), "the base model's vocabulary", next_step)


def _twice(found: Match) -> Reason | None:
    if not found.twice:
        return None
    wrong = f"two changes of {some(found.twice)}, which the base model ties"
    return Reason("untied", wrong, "one weight under two names", "train it tied, or only under one of its names")


def _dtypes(contents: Contents, found: Match) -> Reason | None:
    tensors = contents.layout.tensors
    parts = [*found.parts.values(), *(part for _, part, _ in found.shapes)]
    used = [tensor for part in parts for tensor in part.tensors]
    wrong = [name for name in used if tensors[name].dtype not in FLOATING]
    wrong += [name for name, info in tensors.items() if info.dtype not in FLOATING | COUNTING and name not in wrong]
    if not wrong:
        return None
    return Reason(
        "dtype",
        some([f"{name} is {tensors[name].dtype}" for name in wrong]),
        "float64, float32, float16 or bfloat16",
        "drop the model before it was quantised",
    )


def _quantised(contents: Contents) -> Reason | None:
    """Return why weights that a configuration calls quantised are refused; an adapter of such a model is none."""
    method = contents.config.get("quantization_config") or contents.config.get("compression_config")
    if not method or contents.partial:
        return None
    kind = method.get("quant_method", "unnamed") if isinstance(method, dict) else "unnamed"
    return Reason(
        "quantised",
        f"weights that were quantised ({shown(kind)}), as its config.json says",
        "float64, float32, float16 or bfloat16",
        "drop the model before it was quantised",
    )


def _beside(contents: Contents, base: Base) -> Reason | None:
    """Bound what is read for the digest alone."""
    tensors = contents.layout.tensors
    used = {tensor for part in contents.parts.values() for tensor in part.tensors if not isinstance(part, Whole)}
    nbytes = sum(info.nbytes for name, info in tensors.items() if name not in base.layout.tensors and name not in used)
    room = max(base.layout.nbytes, ROOM)
    if nbytes <= room:
        return None
    found = f"{size(nbytes)} of tensors that the base model has not"
    return Reason("too-large", found, f"at most {size(room)} of them", "save the base model's weights alone")
