"""What a namespace holds: one listing, newest first, and which of its repositories may be checkpoints of the base model."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

from huggingface_hub import HfApi, ModelInfo, get_token

from .client import answering

EXPAND = ["sha", "lastModified", "tags", "gated", "private", "disabled"]
NAME, COMMIT = (
    re.compile(r"[\w.-]+/[\w.-]+", re.ASCII),
    re.compile(r"[0-9a-f]{40}"),
)  # as the Hub has them; they name folders
SKEW = timedelta(hours=1)  # by which times on the Hub may be out of order
LICENCE = "license:"  # begins a tag
OURS = "mergd"  # the tag of what mergd published
OF_BASE = ("finetune", "adapter")  # relations to the base model that make a checkpoint
NEVER = ("merge", "quantized")  # relations to the base model


@dataclass(frozen=True)
class Listed:
    """One repository, as a listing has it; its tags are what its owner claims."""

    repo: str  # org/name
    commit: str  # 40 hexadecimal digits
    modified: datetime
    tags: frozenset[str]
    public: bool | None = None  # whether everybody may see it; None if the Hub does not say

    @property
    def licence(self) -> str:
        """The licence that its owner claims, or several; empty if none."""
        return ", ".join(sorted(tag.removeprefix(LICENCE) for tag in self.tags if tag.startswith(LICENCE)))


@dataclass(frozen=True)
class Wanted:
    """Which repositories count."""

    base: str = ""  # org/name, which a model card must name; empty: any
    allow: tuple[str, ...] = ()  # patterns; empty: all
    deny: tuple[str, ...] = ()
    own: str = ""  # where our own versions are published

    def takes(self, listed: Listed) -> bool:
        """Whether a repository may be a checkpoint: by its name, and by what its card says."""
        named = any(fnmatchcase(listed.repo, pattern) for pattern in self.allow or ("*",))
        denied = any(fnmatchcase(listed.repo, pattern) for pattern in self.deny)
        return named and not denied and listed.repo != self.own and self._claims(listed.tags)

    def _claims(self, tags: frozenset[str]) -> bool:
        if OURS in tags or any(tag.startswith("base_model:merge:") for tag in tags):
            return False  # what was merged already is not folded back
        if not self.base:
            return not any(tag.startswith("base_model:quantized:") for tag in tags)
        named = {f"base_model:{self.base}": "", **{f"base_model:{how}:{self.base}": how for how in (*OF_BASE, *NEVER)}}
        said = {named[tag] for tag in tags if tag in named}
        return bool(said) and not said & set(NEVER)


def newest_first(namespace: str) -> Iterator[Listed]:
    """Yield the repositories of a namespace, the last changed first; pages are asked for as they are needed."""
    with answering(namespace):
        for model in HfApi().list_models(author=namespace, sort="last_modified", expand=EXPAND):  # type: ignore[arg-type]
            is_named = NAME.fullmatch(model.id) and COMMIT.fullmatch(model.sha or "")
            if model.sha and is_named and not getattr(model, "disabled", False):
                modified = model.last_modified or datetime.fromtimestamp(0, UTC)
                yield Listed(model.id, model.sha, modified, frozenset(model.tags or ()), is_public(model))


def is_public(model: ModelInfo) -> bool | None:
    """Whether everybody may see and fetch a repository; None if the Hub did not say."""
    return None if model.private is None or model.gated is None else not (model.private or model.gated)


def since(listing: Iterable[Listed], mark: datetime | None) -> Iterator[Listed]:
    """Yield what changed since the newest that was known, as far as clocks can be trusted; everything without a mark."""
    for listed in listing:
        if mark is not None and listed.modified < mark - SKEW:
            return
        yield listed


def own_names() -> frozenset[str]:
    """Return the namespaces of the token: its user and organisations; none without a token."""
    if get_token() is None:
        return frozenset()
    with answering("the token"):
        found = HfApi().whoami()
    return frozenset([str(found.get("name", "")), *(str(org.get("name", "")) for org in found.get("orgs", ()))])
