"""The sidecar: `checkpoint.toml`, in which a checkpoint's maker says what it counts. Read only where it is trusted."""

import logging
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ..plugins.sources.directory.places import SIDECAR
from ..state.errors import MergdError
from ..state.headers import read_bounded
from ..state.records import Reason
from ..state.wording import decide, shown
from .links import link_elsewhere
from .settings import Settings

log = logging.getLogger(__name__)

LARGEST = 4 * 2**10  # bytes; it may be a stranger's, and some texts take the square of their length
KEYS = ("share", "weight")  # two words for one thing; all other keys are passed over
EXPECTED = "one number above 0, as in: share = 2.0"


@dataclass(frozen=True)
class Counted:
    """What a checkpoint counts, and why a person should look at that, if so."""

    share: float
    doubt: Reason | None = None


def counted(place: Path, settings: Settings) -> Counted:
    """Return what a checkpoint counts: what its sidecar says within bounds, if that is trusted, or else the setting.

    Raises nothing: what cannot be read or understood is for a person to look at.
    """
    if not settings.trust_sidecar:
        return Counted(settings.share)
    try:
        said = _said(place)
    except (MergdError, OSError, ValueError) as error:
        reason = Reason("sidecar", f"{SIDECAR}: {shown(error)}", EXPECTED, decide(str(place)))
        return Counted(settings.share, reason)
    if said is None:
        return Counted(settings.share)
    least, most = settings.weight_range
    share = min(max(said, least), most)
    if share != said:
        log.warning("%s counts %g: its sidecar says %g, which weight_range does not allow", place.name, share, said)
    return Counted(share)


def _said(place: Path) -> float | None:
    """Return what a sidecar says, None where there is none or where it says nothing of that."""
    path = place / SIDECAR
    if not os.path.lexists(path):
        return None
    if link := link_elsewhere(place, [str(path)]):
        raise ValueError(link.found)
    try:
        values = tomllib.loads(read_bounded(path, LARGEST).decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no TOML ({error})") from None
    given = {key: values[key] for key in KEYS if key in values}
    if len(given) > 1:
        raise ValueError(" and ".join(given))
    return next((_number(key, value) for key, value in given.items()), None)


def _number(key: str, value: object) -> float:
    """Return a number above 0. Raises ValueError; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a {key} that is no number")  # noqa: TRY004 - it is the file's, not the program's
    if not 0 < value <= sys.float_info.max:
        raise ValueError(f"a {key} of {shown(value)}")
    return float(value)
