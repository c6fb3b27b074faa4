"""Matching: which of a checkpoint's parts belongs to which weight of the base model; what does not is named, not judged."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from ..plugins.formats.interface import Contents, Part, Whole
from ..state.headers import FLOATING
from ..state.records import Weight
from ..state.wording import shown
from .base import HEAD, Base, tie_setting
from .settings import Settings
from .vocabulary import ids_agree

log = logging.getLogger(__name__)

MANY = 2000  # names that are searched for close ones
SHOWN = 10  # names in a reason


@dataclass
class Match:
    """What fits, and what does not."""

    parts: dict[str, Part] = field(default_factory=dict)  # by the base model's name, fitted to its shape
    aliases: dict[str, str] = field(default_factory=dict)  # tensor -> the tensor whose bytes it must have
    missing: list[str] = field(default_factory=list)  # weights of the base model that nothing is said about
    extra: list[str] = field(default_factory=list)  # names that the base model has not
    twice: list[str] = field(default_factory=list)  # weights that two parts change, as if they were not tied
    shapes: list[tuple[str, Part, Weight]] = field(default_factory=list)  # what does not fit
    vocabulary: list[tuple[str, int, int]] = field(default_factory=list)  # weight, its rows, the base model's
    same_tokens: bool | None = None  # None: it was not asked


def match(contents: Contents, base: Base, settings: Settings, place: Path) -> Match:
    """Match a checkpoint's parts with the base model's weights, under the settings' policies."""
    found, given = Match(), dict[str, Part]()
    for name, part in contents.parts.items():
        name = renamed(name, settings.rename)
        if not skipped(name, settings.skip):
            _give(found, given, name, part, base, contents)
    for name, part in given.items():
        _fit(found, base.by_name[name], part, base, settings, place)
    if not contents.partial:
        found.missing += [n for n in base.by_name if n not in given and not skipped(n, settings.skip)]
    return found


def renamed(name: str, patterns: Mapping[str, str]) -> str:
    """Return a name with the first regular expression that is found in it replaced."""
    return next((re.sub(p, by, name, count=1) for p, by in patterns.items() if re.search(p, name)), name)


def skipped(name: str, patterns: Sequence[str]) -> bool:
    """Whether a weight is one of those that stay the base model's."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _give(found: Match, given: dict[str, Part], name: str, part: Part, base: Base, contents: Contents) -> None:
    """Find the weight that a part is about."""
    weight = _weight_of(name, part, base)
    if weight is None:
        floating = any(contents.layout.tensors[tensor].dtype in FLOATING for tensor in part.tensors)
        if floating and name not in base.layout.tensors:
            found.extra.append(name)
        return
    first = given.setdefault(weight.name, part)
    if first is part:
        return
    if isinstance(first, Whole) and isinstance(part, Whole):
        found.aliases[part.tensor] = first.tensor
    else:
        found.twice.append(weight.name)


def _weight_of(name: str, part: Part, base: Base) -> Weight | None:
    """Return the weight that bears a name; of a tied pair either name will do, also one that the base does not store."""
    weight = base.by_name.get(base.tied.get(name, name))
    if weight or name in base.layout.tensors or not HEAD.search(name) or tie_setting(base.config) is False:
        return weight
    tables = [w for w in base.weights if w.kind == "lookup" and w.shape[0] == base.vocabulary]
    return tables[0] if len(tables) == 1 and part.fit(tables[0].shape) else None


def _fit(found: Match, weight: Weight, part: Part, base: Base, settings: Settings, place: Path) -> None:
    """Turn a part as the weight's shape needs it."""
    fitted = part.fit(weight.shape, base.turned(weight.name))
    if fitted is not None:
        found.parts[weight.name] = fitted
    elif not isinstance(part, Whole) or not _is_longer(part, weight, base):
        found.shapes.append((weight.name, part, weight))
    elif settings.vocabulary == "refuse":
        found.vocabulary.append((weight.name, part.shape[0], base.vocabulary))
    elif _ids_agree(found, base, place, part.shape[0]):
        found.parts[weight.name] = replace(part, rows=min(base.vocabulary, part.shape[0]))
    else:
        log.warning(
            "%s: the tokens of both vocabularies differ, or are not known: %s stays the base's", place, weight.name
        )


def _is_longer(part: Whole, weight: Weight, base: Base) -> bool:
    """Whether only the vocabulary's size tells a weight's new values from the old."""
    return weight.shape[:1] == (base.vocabulary,) and len(part.shape) > 0 and part.shape[1:] == weight.shape[1:]


def _ids_agree(found: Match, base: Base, place: Path, rows: int) -> bool:
    """Compare the tokenizers once for all weights."""
    if found.same_tokens is None:
        found.same_tokens = base.folder is not None and ids_agree(base.folder, place, min(base.vocabulary, rows))
    return found.same_tokens


# --------------------------------------------------------------------------------------------------------- for people


def closest(name: str, among: Sequence[str]) -> str:
    """Return the name that is most like this one, "" if none is."""
    return next(iter(get_close_matches(name, among[:MANY], n=1, cutoff=0.8)), "")


def rename_hint(missing: Sequence[str], extra: Sequence[str]) -> str:
    """Return the line of [rename] that would turn a checkpoint's names into the base model's, "" if no prefix does."""
    wanted, there = set(missing), set(extra)
    for name in extra[:10]:
        for k in (k for k, letter in enumerate(name) if letter == "."):
            if name[k + 1 :] in wanted:
                return f"'^{re.escape(name[: k + 1])}' = ''"
    for name in missing[:10]:
        for k in (k for k, letter in enumerate(name) if letter == "."):
            if name[k + 1 :] in there:
                return f"'^' = '{name[: k + 1]}'"
    return ""


def some(names: Sequence[str]) -> str:
    """Return the first names of many, as a message may show them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(shown(name) for name in names[:SHOWN]) + more
