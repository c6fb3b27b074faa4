"""The nouns: frozen values without tensors, which every layer may know."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod, sqrt
from pathlib import Path
from typing import Any, Literal

from .feeding import Feed
from .wording import cut

CheckpointState = Literal["settling", "ready", "folding", "folded", "refused", "held", "blocked", "vanished"]
Cause = Literal["fold", "remove", "read-out", "re-merge"]
Files = Literal["slots", "model"]  # the two parts of a version that have retention counts of their own

# ---------------------------------------------------------------------------------------------- weights and tensors


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file: its name there and where its bytes lie."""

    name: str
    dtype: str  # as the format spells it: "F32", "BF16", "I64", ...
    shape: tuple[int, ...]
    file: str  # path of the file
    start: int  # bytes from the start of the file
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """The tensors of one model on disk, in file order, and the files that hold them."""

    tensors: Mapping[str, TensorInfo]
    files: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


WeightKind = Literal["matrix", "convolution", "lookup", "other"]


@dataclass(frozen=True)
class Weight:
    """One floating-point weight of the base model, as the fold rules see it."""

    name: str
    shape: tuple[int, ...]
    kind: WeightKind  # a matrix (or a batch of them: 3-D), a convolution that is folded as one (out, in x k x k), a
    # lookup table such as an embedding, or anything else

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class SlotSpec:
    """Shape and dtype of one slot; it starts as zeros."""

    shape: tuple[int, ...]
    dtype: Literal["F32", "F64"] = "F32"

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return (4 if self.dtype == "F32" else 8) * prod(self.shape)


@dataclass(frozen=True)
class Readout:
    """Where the read-out of one weight lies: in a slot that was just written, or spilled aside."""

    layout: Layout
    name: str
    zero: bool = False  # everywhere: what is published is the base model's weight


@dataclass(frozen=True)
class Counts:
    """How much was folded; what a read-out may know while the norms are still being gathered."""

    folded: int  # checkpoints
    shares: float  # sum of the checkpoints' shares


@dataclass(frozen=True)
class Totals:
    """The few scalars of a version, from which a rule computes the scale of the published task vector."""

    folded: int = 0  # checkpoints
    shares: float = 0.0  # sum of the checkpoints' shares
    mean_norm: float = 0.0  # mean Frobenius norm of the task vectors, weighted by share
    readout_norm: float = 0.0  # Frobenius norm of the whole read-out, before the scale

    def with_checkpoint(self, norm: float, share: float, readout_norm: float) -> Totals:
        """Return these totals after one more task vector of this norm; a negative share takes one out again."""
        shares = self.shares + share
        mean = self.mean_norm + (norm - self.mean_norm) * share / shares if shares else 0.0
        return Totals(self.folded + (share > 0) - (share < 0), shares, mean, readout_norm)


@dataclass(frozen=True)
class WeightReport:
    """What one fold did to one weight."""

    task_norm: float  # Frobenius norm of the newcomer's task vector here
    base_norm: float  # Frobenius norm of the base model's weight
    split_rank: float  # leading directions that were protected; 0 where nothing is projected
    survived: float  # share of the newcomer's squared norm that was kept, 0 to 1
    dot: float = 0.0  # inner product of the newcomer's task vector with the parent's read-out, here
    margin: float = 0.0  # how far the split rank was from being another one, as a share of the singular-value sum


# ------------------------------------------------------------------------------------------- checkpoints and verdicts


@dataclass(frozen=True)
class Reason:
    """Why something was refused, held or is waited for: what was found, what was expected, what to do."""

    code: str
    found: str
    expected: str
    next_step: str

    def __str__(self) -> str:
        return f"{self.code}: found {cut(self.found)}, expected {cut(self.expected)}"


@dataclass(frozen=True)
class Verdict:
    """What admission or a gate decides: it admits, refuses, or holds for a person."""

    decision: Literal["admitted", "refused", "held"]
    reasons: tuple[Reason, ...] = ()

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of its reasons."""
        return tuple(reason.code for reason in self.reasons)


ADMITTED = Verdict("admitted")


@dataclass(frozen=True)
class Metric:
    """What a gate's program measured of a model by one yardstick."""

    value: float
    higher_is_better: bool
    n: int  # examples that it was measured on


Metrics = Mapping[str, Metric]  # by name


@dataclass(frozen=True)
class Evaluation:
    """What one gate measured of one model."""

    digest: str  # of the model: a version's, a draft's or the base model's
    gate: str  # its name
    identity: str  # of what measured: numbers of two identities are not compared
    metrics: Metrics
    seconds: float  # that it took
    at: str  # UTC, ISO 8601


@dataclass(frozen=True)
class FileStamp:
    """What tells that a file is still the same one, without reading it."""

    name: str  # relative to the sighting's place
    device: int
    inode: int
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, name: str, status: os.stat_result) -> FileStamp:
        """Return the stamp of what was looked at; what is no regular file has the size -1."""
        size = status.st_size if stat.S_ISREG(status.st_mode) else -1
        return cls(name, status.st_dev, status.st_ino, size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True)
class Sighting:
    """The news that something new may lie at a place; cheap, repeatable, possibly wrong."""

    source: str  # the source's name
    place: str  # absolute path; or, where it lies elsewhere, hf://org/name
    name: str  # what people call it: the last part of the place, or more where that would not tell it from others
    stamps: tuple[
        FileStamp, ...
    ]  # the files that could belong to a checkpoint, sorted by name; none before they are here
    run: str = ""  # the folder in which one training writes it, if one does
    step: int | None = None  # of that training; None for its final model
    owner: str = ""  # the user who owns its files, where the source knows
    revision: str = ""  # what its source calls this very content, as a commit; empty where the stamps alone tell
    folder: str = ""  # where its files lie on this disk, if that is not its place
    files: str = ""  # what its source says that they hold: the same text, the same content
    public: bool | None = None  # whether everybody may see it where it lies, if that is known
    licence: str = ""  # which one its owner claims, where its source knows
    feed: Feed | None = field(default=None, compare=False)  # what gives the bytes of files that have holes in `folder`

    @property
    def here(self) -> Path:
        """Where its files lie on this disk."""
        return Path(self.folder or self.place)

    @property
    def lies_here(self) -> bool:
        """Whether all of it lies on this disk."""
        return not self.revision or bool(self.folder)

    @property
    def changed_ns(self) -> int:
        """The last change of any of its files, in wall-clock nanoseconds; a user cannot set a ctime back."""
        return max((max(stamp.ctime_ns, stamp.mtime_ns) for stamp in self.stamps), default=0)

    @property
    def fingerprint(self) -> str:
        """One line that differs when any file differs."""
        return self.revision or ";".join(
            f"{s.name}:{s.device}:{s.inode}:{s.size}:{s.mtime_ns}:{s.ctime_ns}" for s in self.stamps
        )


@dataclass(frozen=True)
class Checkpoint:
    """One row of the history: a place where a checkpoint was seen, and what became of it."""

    id: int
    source: str
    place: str
    name: str
    fingerprint: str
    state: CheckpointState
    since: str  # UTC, ISO 8601: when it entered this state
    reasons: tuple[Reason, ...] = ()
    digest: str | None = None  # known once its content was read whole
    order: int | None = None  # its place in the order in which checkpoints were first seen ready
    urgent: int | None = None  # its place among those that a person asked to fold now
    duplicate_of: int | None = None  # the row that holds the same content
    replaces: int | None = None  # the row in whose stead it counts, if that one is in the model when its turn comes
    owner: str | None = None  # the user who owns its files, where the source knows
    files: str | None = None  # what its source said that its files hold, if it said so before they were here
    public: bool | None = None  # whether everybody could see it where it lay, if that was known
    nbytes: int | None = None  # of its files when it was folded last, if that was noted
    licence: str | None = None  # which one its owner claimed, if any

    @property
    def contributor(self) -> str:
        """Who it counts for: the owner of its files, or else its source."""
        return self.owner or self.source


# ---------------------------------------------------------------------------------------------------------- versions


@dataclass(frozen=True)
class FileDigest:
    """One file of a version, relative to its folder."""

    name: str
    size: int  # bytes
    blake3: str


@dataclass(frozen=True)
class Version:
    """One immutable result: totals, parent, and its cause."""

    number: int
    parent: int | None
    cause: Cause
    checkpoint: int | None  # id of the checkpoint that was folded, if that is the cause
    rule: str
    totals: Totals
    scale: float
    digest: str  # over weights and slots
    created_at: str  # UTC, ISO 8601
    seconds: Mapping[str, float] = field(default_factory=dict)  # by step
    bytes_read: int = 0
    bytes_written: int = 0
    slots_kept: bool = True
    model_kept: bool = True
    removed: int | None = None  # id of the checkpoint that was taken out, if that is the cause
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the cause: what a replay needs to repeat it
    gates: tuple[str, ...] = ()  # of the user's, that looked at the draft and let it pass
    stamps: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # file -> size, mtime in ns, as it was written
    method: Mapping[str, Any] = field(default_factory=dict)  # how it is folded onto; empty: as init pinned it
    checked_at: str | None = None  # UTC, ISO 8601: when all of its files were last read and found sound
    damaged: str | None = None  # what was found not to be as it was written

    @property
    def kept(self) -> bool:
        """Whether the head may move here: its published folder is there, and nobody knows of any damage to it."""
        return self.model_kept and self.damaged is None

    @property
    def is_known(self) -> bool:
        """Whether it is known what made it; not so where a rebuild found its manifest damaged."""
        return self.checkpoint is not None or self.removed is not None or self.cause in ("read-out", "re-merge")

    @property
    def read_at_once(self) -> bool:
        """Whether a batch rule read it out of all task vectors, of which its slots say nothing."""
        return "by" in self.arguments

    def harmed(self, part: Files) -> bool:
        """Whether files of this part are known to be damaged; the manifest is one of the slots'."""
        return self.damaged is not None and ("versions/" if part == "slots" else "models/") in self.damaged

    def keeps(self, part: Files) -> bool:
        """Whether this part of it is there."""
        return self.slots_kept if part == "slots" else self.model_kept

    def __str__(self) -> str:
        return f"v{self.number}"


MADE_BY_ITSELF = ("fold", "replace", "damage")  # why the head moved, where no person wanted it


@dataclass(frozen=True)
class Move:
    """One move of the head."""

    id: int
    from_version: int | None
    to_version: int
    who: str
    why: str
    at: str  # UTC, ISO 8601

    @property
    def by_person(self) -> bool:
        """Whether a person wanted the head there; a fold moves it because a checkpoint came."""
        return self.why not in MADE_BY_ITSELF


OURS = re.compile(r"(replayed|rebuilt)-\d+")  # tags that mergd gives: what was made once more, what a rebuild found


@dataclass(frozen=True)
class Tag:
    """A name that a person gave a version, which is kept for as long as it has it."""

    name: str
    version: int
    who: str
    at: str  # UTC, ISO 8601


@dataclass(frozen=True)
class Task:
    """What a person asked for that takes long and makes a version, or files of one; it outlives a restart."""

    id: int
    verb: str  # remove, replay
    arguments: Mapping[str, Any]
    who: str
    at: str  # UTC, ISO 8601
    tries: int = 0  # that ended without an outcome
    outcome: str | None = None  # how it ended; none while it waits or is being done


@dataclass(frozen=True)
class Attempt:
    """One try to fold a checkpoint; without an outcome, a crash ended it."""

    id: int
    checkpoint: int
    started_at: str
    outcome: str | None


@dataclass(frozen=True)
class Pushed:
    """One move of the head, as it went to a repository of the Hub."""

    move: int
    version: int
    repository: str  # org/name
    commit: str  # 40 hexadecimal digits
    at: str  # UTC, ISO 8601


@dataclass(frozen=True)
class Contribution:
    """What one fold brought: what later checkpoints are judged by."""

    version: int
    checkpoint: str  # name
    contributor: str  # the owner of its files, or its source
    norm: float  # Frobenius norm of the whole task vector
    sketch: bytes  # of the task vector: a few kilobytes, from which its cosine with another one is estimated


@dataclass(frozen=True)
class Drafted:
    """What a gate sees of a drafted version."""

    version: int
    parent: int | None
    checkpoint: str  # name
    model: str | None  # path of the drafted model folder; None while only the norms are known
    totals: Totals
    weights: Mapping[str, WeightReport]
    place: str = ""  # absolute path of the checkpoint
    contributor: str = ""  # the owner of its files, or its source
    shapes: Mapping[str, Weight] = field(default_factory=dict)  # what each weight is
    strength: tuple[int, float] = (0, 0.0)  # of an adapter: the largest rank, the largest scale of a product
    parent_norm: float = 0.0  # Frobenius norm of the parent's whole read-out
    past: tuple[Contribution, ...] = ()  # folds in the parent's line, newest first; at most 1,000
    cosines: tuple[float, ...] = ()  # of the newcomer's task vector with each of the past, by sketch
    last_day: int = 0  # folds of the last 24 hours, in any line

    @property
    def norm(self) -> float:
        """Frobenius norm of the newcomer's whole task vector."""
        return sqrt(sum(report.task_norm**2 for report in self.weights.values()))

    @property
    def base_norm(self) -> float:
        """Frobenius norm of the base model's weights."""
        return sqrt(sum(report.base_norm**2 for report in self.weights.values()))


@dataclass(frozen=True)
class News:
    """What a hook is told: the head has moved."""

    id: int  # the move's; the same news may come twice, never out of order
    version: int
    before: int | None
    who: str
    why: str
    model: str  # path of the published model folder
    digest: str
    at: str


@dataclass(frozen=True)
class Notice:
    """What a hook of the configuration is told: the head has moved, or a checkpoint was refused or is held."""

    seq: int  # its place in the order; the same notice may come twice, never out of order
    id: str  # the same each time that it comes, and no other notice's, of any merge
    kind: str  # why the head moved, or "refused", or "held"
    from_version: int | None  # of a move of the head, as the next
    to_version: int | None
    who: str
    why: str
    path: str  # of the published model folder, or the checkpoint's place
    digest: str | None  # of the version, or of the checkpoint's content where that was read
    at: str  # UTC, ISO 8601
