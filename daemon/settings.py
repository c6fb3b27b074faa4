"""The settings: one TOML file, typed and checked, and where it is looked for."""

import grp
import os
import pwd
import re
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from ..state.errors import Misconfigured, NotPermitted, Usage

SYSTEM_FOLDER = Path("/etc/mergd")
LOCAL = Path("mergd.toml")
AT_LEAST = 80_000_000  # bytes of working buffers, where `memory` does not say and nothing needs more
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: Any) -> Any:
    """Read "5s", "10m", "12h" or "7d"; a bare number is seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", value) if isinstance(value, str) else None
    return float(match[1]) * UNITS[match[2] or "s"] if match else value


def _absolute(value: Any) -> Any:
    return os.path.abspath(Path(value).expanduser()) if isinstance(value, str | Path) else value


def _switched(value: Any) -> Any:
    """Read `false` as 0, which switches a limit off; `true` says no limit."""
    if value is True:
        raise ValueError("give a number, or false to switch it off")
    return 0 if value is False else value


def _counted(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("give a number")  # noqa: TRY004 - pydantic tells of ValueErrors
    return value


Duration = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
Folder = Annotated[Path, BeforeValidator(_absolute)]
Watched = Annotated[Path | None, BeforeValidator(lambda value: _absolute(value) if value != "" else None)]


Limit = Annotated[float, BeforeValidator(_switched), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_switched), Field(ge=0, le=1)]
Counting = Annotated[  # some rules fold it so many times
    float, BeforeValidator(_counted), Field(gt=0, le=1000, allow_inf_nan=False)
]


class Table(BaseModel):
    """A table of the configuration file. The description of each field is its line in the settings table."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Limits(Table):
    """What the built-in gate holds a checkpoint for; 0 or false switches a limit off."""

    norm: Limit = 0.5
    """The largest norm of a task vector, as a multiple of the base model's norm, over all weights together."""
    weight_norm: Limit = 1.0
    """The same for each matrix; one that the base model has near zero is left out."""
    sigmas: Limit = 6.0
    """Robust sigmas that a norm may be away from the usual one, once 5 were folded; within a factor of 3 it always may."""
    cosine: Annotated[float, BeforeValidator(_switched), Field(ge=-1, le=0)] = -0.5
    """The smallest cosine of a task vector with the running merge."""
    near_copy: Share = 0.99
    """The largest cosine with a checkpoint in the model whose norm differs by less than 2 %; it is estimated."""
    share: Share = 0.0
    """The largest share of the summed norm that one owner or source may have, such as `0.5`, where there are several."""
    adapter_rank: Annotated[int, BeforeValidator(_switched), Field(ge=0)] = 1024
    """The largest rank of an adapter's factors."""
    adapter_scale: Limit = 64.0
    """The largest factor that an adapter's product is scaled by, `lora_alpha / r` for LoRA."""
    per_day: Annotated[int, BeforeValidator(_switched), Field(ge=0)] = 0
    """How many folds there may be in 24 hours; those after them are held."""


class ArchiveSettings(Table):
    """Which checkpoints are copied into the state as they are folded, so that a replay does not need their places."""

    adapters: bool = True
    """Whether every adapter is copied into the archive as it is folded."""
    full: ByteSize = Field(default=ByteSize(0))
    """The most that copies of full models take in the archive, such as `100GB`; the oldest go first. 0: none is copied."""


class LinesSettings(Table):
    """LiNeS (arXiv 2410.17146): a weight at depth d, from 0 at the input to 1 at the output, counts alpha + beta x d."""

    alpha: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """The factor at the input, and of all that is in no block and no head. Pinned at init."""
    beta: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """What is added to it, linearly, until the output. Pinned at init."""


class HubSettings(Table):
    """The Hugging Face Hub: a namespace that is watched for fine-tunes and adapters, and where the versions are pushed."""

    namespace: Annotated[str, Field(pattern=r"^[\w.-]*$")] = ""
    """The user or organisation whose models are watched; none if empty. Private ones need a token: HF_TOKEN or HF_TOKEN_PATH."""
    allow: tuple[str, ...] = ()
    """Patterns of the repositories that count, such as `acme/llama-*`; empty: all, where the namespace is the token's own."""
    deny: tuple[str, ...] = ()
    """Patterns of repositories that never count, whatever `allow` says."""
    base: Annotated[str, Field(pattern=r"^([\w.-]+/[\w.-]+)?$")] = ""
    """The repository that a model card must name as its base; empty: that of `base_model`, or any where that is a folder."""
    poll: Duration = Field(default=60.0, ge=1)
    """How often the namespace is listed."""
    spool: ByteSize = Field(default=ByteSize(0), ge=0)
    """The most that downloads take on disk at once, such as `50GB`; one is always begun. 0: one at a time."""
    bandwidth: ByteSize = Field(default=ByteSize(0), ge=0)
    """The most that downloads take of the line, each second, such as `20MB`; 0: all."""
    publish_to: Annotated[str, Field(pattern=r"^([\w.-]+/[\w.-]+)?$")] = ""
    """The repository `org/name` that each move of the head is pushed to; none if empty. It is created private."""
    publish_private_sources: bool = False
    """Whether a public repository may get versions with sources that are not known to be public."""
    write_token: str = ""
    """The file with the token that may write to `publish_to`; a relative name is one of systemd's credentials."""

    @model_validator(mode="after")
    def _may_write(self) -> Self:
        if self.publish_to and not self.write_token:
            raise ValueError("publish_to needs write_token: the file with the token that may write there")
        return self


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
    scrub: Annotated[Duration, BeforeValidator(_switched)] = 30 * 86400.0
    """How often every kept file is read again and compared with what was written, such as `30d`; 0: never by itself."""
    limits: Limits = Limits()
    """What the built-in gate holds a checkpoint for until a person approves it; 0 or false switches a limit off."""
    hub: HubSettings = HubSettings()
    """The Hugging Face Hub: the namespace that is watched, and the repository that versions are pushed to."""
    archive: ArchiveSettings = ArchiveSettings()
    """Which checkpoints are copied into the state as they are folded, so that a replay does not need their places."""
    gates: tuple[str, ...] = ()
    """Gates of installed packages that judge each drafted version, by name, in order."""
    hooks: tuple[str, ...] = ()
    """Hooks of installed packages that are told each move of the head, by name."""

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
            raise ValueError("neither watch nor hub.namespace says where checkpoints come from")
        return self

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
    """Return every setting by the key that `--set` takes: those of a table with a point, `limits.norm`."""
    found: dict[str, FieldInfo] = {}
    for name, field in Settings.model_fields.items():
        table = field.annotation
        inner = table.model_fields if isinstance(table, type) and issubclass(table, Table) else None
        found |= {f"{name}.{key}": part for key, part in inner.items()} if inner else {name: field}
    return found


PINNED = (
    "base_model", "rule", "parameters", "out_dtype", "threads", "device", "convolutions", "scale", "lines", "normalise", "also_keep",
)  # fmt: skip


def read_settings(path: Path) -> Settings:
    """Return the settings of a file. Raises Misconfigured naming the first wrong key, and what is right."""
    try:
        check_owner(path)
        with path.open("rb") as file:
            values = tomllib.load(file)
    except PermissionError:
        raise NotPermitted(f"this user may not read {path}", "run as its owner, or with sudo") from None
    except OSError as error:
        raise Misconfigured(f"cannot read {path}: {error.strerror}", "bring it back") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path} is no TOML: {error}", "mend that line") from None
    for key in ("watch", "state"):  # a relative path means the same from wherever a command is run
        if isinstance(values.get(key), str) and values[key]:
            values[key] = str(Path(_absolute(path)).parent / Path(values[key]).expanduser())
    return validate(values, str(path))


def validate(values: dict[str, Any], origin: str) -> Settings:
    """Return checked settings. Raises Misconfigured."""
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several settings together
            raise Misconfigured(
                f"{origin}: {first['ctx']['error']}", "give a directory, or a namespace of the Hub"
            ) from None
        key = ".".join(str(part) for part in first["loc"])
        hint = f"known keys: {', '.join(keys())}" if first["type"] == "extra_forbidden" else f"correct {key}"
        raise Misconfigured(f"{origin}: {key}: {first['msg']}", hint) from None
    check_apart(settings)
    return settings


def values_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Return settings from texts KEY=VALUE, VALUE as TOML or as it stands; a key that is no setting is a parameter."""
    values: dict[str, Any] = {"parameters": {}}
    for pair in pairs:
        key, mark, text = pair.partition("=")
        if not mark:
            raise Usage(f"{pair!r} is not KEY=VALUE", "such as: --set alpha=0.4")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        table, point, name = key.partition(".")
        if point and table in Settings.model_fields:
            values.setdefault(table, {})[name] = value
        else:
            (values if key in Settings.model_fields else values["parameters"])[key] = value
    return values


def check_apart(settings: Settings) -> None:
    """Refuse folders that contain one another: mergd would watch what it writes, or write into what it reads."""
    places = {"state": settings.state} | ({"watch": settings.watch} if settings.watch else {})
    base = Path(settings.base_model).expanduser()
    if base.exists():
        places["base_model"] = Path(_absolute(base))
    real = {key: path.resolve() for key, path in places.items()}
    for one, path in real.items():
        for other, inside in real.items():
            if one != other and inside.is_relative_to(path):
                raise Misconfigured(
                    f"{other} ({places[other]}) lies in {one} ({places[one]})", "give each a place of its own"
                )


# ------------------------------------------------------------------------------------------------------------ finding


def find_config(config: Path | None = None, name: str | None = None) -> Path:
    """Return the configuration file: `config`, /etc/mergd/NAME.toml, $MERGD_CONFIG, ./mergd.toml (never for root, who
    might stand in somebody else's folder), or /etc/mergd/mergd.toml. Raises Misconfigured if it is not there.
    """
    path = _named(config, name) or _default_config()
    if not path.is_file():
        here = LOCAL.is_file() and path == SYSTEM_FOLDER / LOCAL
        hint = (
            f"root takes {LOCAL} only when told: -c {LOCAL}" if here else "make one: mergd init --help; or give -c PATH"
        )
        raise Misconfigured(f"there is no configuration at {path}", hint)
    return path


def _named(config: Path | None, name: str | None) -> Path | None:
    if config is not None and name is not None:
        raise Misconfigured("both -c and -n were given", "give one of them")
    if name is not None and not re.fullmatch(r"[\w.-]+", name):
        raise Misconfigured(f"{name!r} is no name of a configuration", f"-n NAME means {SYSTEM_FOLDER}/NAME.toml")
    return config if name is None else SYSTEM_FOLDER / f"{name}.toml"


def _default_config() -> Path:
    if named := os.environ.get("MERGD_CONFIG"):
        return Path(named)
    return LOCAL if os.geteuid() != 0 and LOCAL.is_file() else SYSTEM_FOLDER / LOCAL


def new_config(config: Path | None, name: str | None) -> Path:
    """Return where init writes the configuration: as it is looked for, or ./mergd.toml."""
    return _named(config, name) or Path(os.environ.get("MERGD_CONFIG") or LOCAL)


def check_owner(path: Path) -> None:
    """Refuse a configuration that somebody else could change: it, and the folders above it, must belong to the caller
    or to root, and be writable by nobody else (a sticky folder of root's, such as /tmp, lets nobody replace our files).
    """
    absolute = Path(_absolute(path))
    for place in (absolute.resolve(), *absolute.resolve().parents):
        status = place.stat()
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX and status.st_uid == 0
        if status.st_uid not in (0, os.geteuid()):
            raise Misconfigured(f"{place} belongs to user {status.st_uid}", "it must belong to you or to root")
        if status.st_mode & 0o022 and not sticky and not _private_group(status):
            raise Misconfigured(f"{place} is writable by others", f"run: chmod go-w {place}")


def _private_group(status: os.stat_result) -> bool:
    """Whether only its group may write, and that is the owner's own, with nobody else in it (umask 002)."""
    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    alone = owner.pw_gid == group.gr_gid and owner.pw_name == group.gr_name and set(group.gr_mem) <= {owner.pw_name}
    return alone and not status.st_mode & 0o002
