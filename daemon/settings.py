"""The settings: typed and checked."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, ByteSize, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from ..state.errors import Misconfigured
from .settings_tables import (
    ArchiveSettings,
    Counting,
    Duration,
    Folder,
    GateSettings,
    HookSettings,
    HubSettings,
    Limits,
    LinesSettings,
    MetricsSettings,
    Name,
    Table,
    Watched,
    absolute,
    switched,
)

AT_LEAST = 80_000_000  # bytes of working buffers, where `memory` does not say and nothing needs more


class Settings(Table):
    """What the configuration file says."""

    base_model: str
    """The base model: a folder, a `.safetensors` file, or `org/name@revision` on the Hub. Pinned at init."""
    watch: Watched = None
    """The watched directory; none if empty. Nothing in it is ever moved or changed."""
    state: Folder
    """The state directory: history, slots, and the published models under `models/`."""
    source: str = "directory"
    """Where checkpoints come from: `directory`, or a source that a package adds, which is given `watch`."""
    rule: str = "opcm"
    """The fold rule: one of many, such as `opcm`, `gram` or `average`. Pinned at init."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """The rule's parameters, such as `alpha` and `variant` of opcm; the page on rules lists them. Pinned at init."""
    scale: Literal["rule", "mean-norm"] | Annotated[float, Field(allow_inf_nan=False)] = "rule"
    """What the read-out is multiplied by: the rule's own, `mean-norm` (OPCM's adaptive scale), or a number. Pinned at init."""
    lines: LinesSettings = LinesSettings()
    """LiNeS: what the read-out of each weight is multiplied by besides, by its depth in the network. Pinned at init."""
    normalise: bool = False
    """Whether each task vector is folded at the mean norm of all, whatever its own. Pinned at init."""
    also_keep: tuple[str, ...] = ()
    """Rules whose statistics are kept besides, with their defaults, to read by them too. Pinned at init."""
    out_dtype: Literal["base", "float32", "float16", "bfloat16"] = "base"
    """The dtype of published weights; `base` leaves each as the base model has it. Pinned at init."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads of a matrix product. Pinned at init, because it can change the last bit of a result."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")] = "cpu"
    """Where task vectors are folded: `cpu`, a GPU as `cuda` or `cuda:1`, or `auto`, a GPU if there is one. Pinned at init."""
    convolutions: Literal["sum", "project"] = "sum"
    """How convolutions are folded: summed, or projected as matrices of (out, in x k x k). Pinned at init."""
    missing: Literal["refuse", "zero-delta"] = "refuse"
    """What a weight that a checkpoint lacks means: it is refused, or has not changed."""
    extra: Literal["refuse", "ignore"] = "refuse"
    """What a weight that the base model lacks means: the checkpoint is refused, or that weight is passed over."""
    skip: tuple[str, ...] = ()
    """Weights that stay the base model's, as patterns such as `classifier.*`: task heads, for instance."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Regular expressions and what replaces them in a checkpoint's names; the first that is found counts."""
    vocabulary: Literal["refuse", "base-rows"] = "refuse"
    """What another vocabulary size means: refused, or only rows are folded that both have, with the same tokens."""
    share: Counting = 1.0
    """What each checkpoint counts, at most 1000; 2 means as if it were folded twice."""
    trust_sidecar: bool = False
    """Whether `checkpoint.toml` in a checkpoint's folder says what that one counts, as `share = 2.0`, in the stead of `share`."""
    weight_range: tuple[Counting, Counting] = (0.1, 10.0)
    """What a checkpoint counts at least and at most, whatever its sidecar says."""
    existing: Literal["hold", "fold", "ignore"] = "hold"
    """What init does with the checkpoints that lie in the watched directory already."""
    quiet: Duration = 5.0
    """How long a checkpoint's files must stay unchanged before it is taken, such as `5s`."""
    quiet_unsure: Duration = 30.0
    """The same where the kernel does not say whether somebody writes them, or where they have holes."""
    quiet_network: Duration = 120.0
    """The same on a network file system, where writing by others is not seen."""
    marked_only: bool = False
    """Whether a checkpoint is taken only with a `READY` marker or a `SHA256SUMS` manifest, which end every wait."""
    on_change: Literal["hold", "add", "replace", "ignore"] = "hold"
    """What new content means at a place that was folded before; `replace`: the new counts in the stead of the old."""
    per_run: Literal["last", "each", "replace"] = "last"
    """Which steps of a trainer's run `RUN/checkpoint-N` count; `replace`: each later one in the stead of the earlier."""
    run_quiet: Duration = 1800.0
    """How long a run must be quiet before its last step counts; its final model, in `RUN` itself, counts at once."""
    rescan: Duration = Field(default=60.0, gt=0)
    """How often the watched directory is scanned, whatever the events say."""
    events: bool = True
    """Whether file system events also wake a scan; without them, `rescan` alone does."""
    memory: ByteSize = Field(default=ByteSize(0), ge=0)
    """The most that working buffers take, such as `512MB`; 0: 80 MB, or what the largest matrix takes."""
    shard_size: ByteSize = Field(default=ByteSize(5_000_000_000), ge=1)
    """The largest published weight file, such as `5GB`."""
    copy_code: bool = False
    """Whether `*.py` files and `auto_map` entries of the base model are published too."""
    keep_last: int = Field(default=5, ge=1)
    """How many of the newest versions keep their files."""
    keep_within: Duration = 7 * 86400.0
    """Versions younger than this keep their files too, such as `7d`."""
    keep_daily: int = Field(default=0, ge=0)
    """Of how many of the last days that have versions the newest of the day keeps its files; days are those of UTC."""
    keep_weekly: int = Field(default=0, ge=0)
    """The same for weeks, from Monday on."""
    keep_slots: int = Field(default=0, ge=0)
    """How many of the newest versions keep their slots, which folding on needs, with their model; 0: all that keep it."""
    disk: ByteSize = Field(default=ByteSize(0), ge=0)
    """The most that the state may take on disk, such as `500GB`: folding waits for room. 0: all that is free."""
    prepare: bool = True
    """Whether the daemon computes what the next fold needs of the head alone while nothing else is to be done."""
    prepared: ByteSize = Field(default=ByteSize(20_000_000_000), ge=0)
    """The most that what is prepared takes on disk, such as `20GB`: the rest is computed when a checkpoint is folded."""
    scrub: Annotated[Duration, BeforeValidator(switched)] = 30 * 86400.0
    """How often every kept file is read again and compared with what was written, such as `30d`; 0: never by itself."""
    limits: Limits = Limits()
    """What the built-in gate holds a checkpoint for until a person approves it; 0 or false switches a limit off."""
    hub: HubSettings = HubSettings()
    """The Hugging Face Hub: the namespace that is watched, and the repository that versions are pushed to."""
    archive: ArchiveSettings = ArchiveSettings()
    """Which checkpoints are copied into the state as they are folded, so that a replay does not need their places."""
    metrics: MetricsSettings = MetricsSettings()
    """Where Prometheus finds the figures of the daemon: in a file, or at a port that only this machine reaches."""
    gates: tuple[str, ...] = ()
    """Gates of installed packages that judge each drafted version, by name, in order."""
    gate: dict[Name, GateSettings] = Field(default_factory=dict)
    """Gates that are programs of yours, each a table with a name: they measure each drafted version, in order."""
    hooks: tuple[str, ...] = ()
    """Hooks of installed packages that are told each move of the head, by name."""
    hook: dict[Name, HookSettings] = Field(default_factory=dict)
    """Commands and webhooks that are told each move of the head and each refusal, each in a table of its own."""

    @field_validator("rename")
    @classmethod
    def _compiles(cls, rename: dict[str, str]) -> dict[str, str]:
        for pattern, by in rename.items():
            try:
                re.sub(pattern, by, "")
            except (re.error, IndexError) as error:
                raise ValueError(f"{pattern!r} = {by!r} is no regular expression and replacement: {error}") from None
        return rename

    @model_validator(mode="after")
    def _watches(self) -> Self:
        if self.watch is None and not self.hub.namespace:
            found = "neither watch nor hub.namespace says where checkpoints come from"
            raise ValueError(found, "give a directory, or a namespace of the Hub")
        return self

    @model_validator(mode="after")
    def _is_called(self) -> Self:
        if self.hub.webhook_secret and not (self.metrics.listen and self.hub.namespace):
            found = "hub.webhook_secret needs metrics.listen, where the Hub's calls come in, and hub.namespace"
            raise ValueError(found, "set both, or leave hub.webhook_secret empty")
        return self

    @field_validator("gate")
    @classmethod
    def _has_names_of_its_own(cls, gate: dict[str, GateSettings], info: ValidationInfo) -> dict[str, GateSettings]:
        if both := gate.keys() & set(info.data.get("gates", ())):
            raise ValueError(f"a gate of the setting gates is called {min(both)} too")
        return gate

    @field_validator("weight_range")
    @classmethod
    def _in_order(cls, weight_range: tuple[float, float]) -> tuple[float, float]:
        if weight_range[0] > weight_range[1]:
            raise ValueError("the least comes first")
        return weight_range

    @property
    def buffers(self) -> int:
        """Return the bytes of working buffers where no weight is needed whole."""
        return int(self.memory) or AT_LEAST

    @property
    def pinned(self) -> dict[str, Any]:
        """Return what init fixes for the life of the state."""
        values = self.model_dump(mode="json", include=set(PINNED))
        return {name: values[name] for name in PINNED}

    @property
    def method(self) -> dict[str, Any]:
        """Return how checkpoints are folded and read out, as a method is described."""
        return {
            "rule": self.rule,
            "parameters": self.parameters,
            "also": {name: {} for name in self.also_keep},
            "scale": self.scale,
            "lines": self.lines.model_dump(),
            "normalise": self.normalise,
        }


def keys() -> dict[str, FieldInfo]:
    """Return every setting by the key that `--set` takes: `limits.norm` in a table, `gate.NAME.drop` in one of many tables."""
    found: dict[str, FieldInfo] = {}
    for name, field in Settings.model_fields.items():
        table, each = field.annotation, get_args(field.annotation)[1:]  # of dict[str, Table]: those that a person names
        if isinstance(table, type) and issubclass(table, Table):
            found |= {f"{name}.{key}": part for key, part in table.model_fields.items()}
        elif each and isinstance(each[0], type) and issubclass(each[0], Table):
            found |= {f"{name}.NAME.{key}": part for key, part in each[0].model_fields.items()}
        else:
            found[name] = field
    return found


PINNED = (
    "base_model", "rule", "parameters", "out_dtype", "threads", "device", "convolutions", "scale", "lines", "normalise", "also_keep",
)  # fmt: skip


def validate(values: dict[str, Any], origin: str) -> Settings:
    """Return checked settings. Raises Misconfigured."""
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several settings together
            found, hint = first["ctx"]["error"].args
            raise Misconfigured(f"{origin}: {found}", hint) from None
        key = ".".join(str(part) for part in first["loc"])
        hint = f"known keys: {', '.join(keys())}" if first["type"] == "extra_forbidden" else f"correct {key}"
        raise Misconfigured(f"{origin}: {key}: {first['msg']}", hint) from None
    check_apart(settings)
    return settings


def check_apart(settings: Settings) -> None:
    """Refuse folders that contain one another: mergd would watch what it writes, or write into what it reads."""
    places = {"state": settings.state} | ({"watch": settings.watch} if settings.watch else {})
    base = Path(settings.base_model).expanduser()
    if base.exists():
        places["base_model"] = Path(absolute(base))
    real = {key: path.resolve() for key, path in places.items()}
    for one, path in real.items():
        for other, inside in real.items():
            if one != other and inside.is_relative_to(path):
                raise Misconfigured(
                    f"{other} ({places[other]}) lies in {one} ({places[one]})", "give each a place of its own"
                )
