"""What a setting may be, and the tables of the configuration file."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

LISTEN = re.compile(r"(?P<host>127\.0\.0\.1|\[::1\]|localhost):(?P<port>[0-9]{1,5})")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: Any) -> Any:
    """Read "5s", "10m", "12h" or "7d"; a bare number is seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", value) if isinstance(value, str) else None
    return float(match[1]) * UNITS[match[2] or "s"] if match else value


def absolute(value: Any) -> Any:
    """Return a path as one that means the same from everywhere; what is no path stays."""
    return os.path.abspath(Path(value).expanduser()) if isinstance(value, str | Path) else value


def switched(value: Any) -> Any:
    """Read `false` as 0, which switches a limit off; `true` says no limit."""
    if value is True:
        raise ValueError("give a number, or false to switch it off")
    return 0 if value is False else value


def _counted(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("give a number")  # noqa: TRY004 - pydantic tells of ValueErrors
    return value


def _prom(path: Path | None) -> Path | None:
    if path is not None and path.suffix != ".prom":
        raise ValueError("its name must end with .prom: node_exporter reads no other")
    return path


def _loopback(text: str) -> str:
    match = LISTEN.fullmatch(text)
    if text and not (match and 0 < int(match["port"]) < 65536):
        raise ValueError(
            "give a port of this machine, as 127.0.0.1:9190, [::1]:9190 or localhost:9190: no other is served"
        )
    return text


Duration = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
Folder = Annotated[Path, BeforeValidator(absolute)]
Watched = Annotated[Path | None, BeforeValidator(lambda value: absolute(value) if value != "" else None)]


Limit = Annotated[float, BeforeValidator(switched), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(switched), Field(ge=0, le=1)]
Counting = Annotated[  # some rules fold it so many times
    float, BeforeValidator(_counted), Field(gt=0, le=1000, allow_inf_nan=False)
]
Loss = Annotated[float, BeforeValidator(_counted), Field(ge=0, allow_inf_nan=False)]


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
    cosine: Annotated[float, BeforeValidator(switched), Field(ge=-1, le=0)] = -0.5
    """The smallest cosine of a task vector with the running merge."""
    near_copy: Share = 0.99
    """The largest cosine with a checkpoint in the model whose norm differs by less than 2 %; it is estimated."""
    share: Share = 0.0
    """The largest share of the summed norm that one owner or source may have, such as `0.5`, where there are several."""
    adapter_rank: Annotated[int, BeforeValidator(switched), Field(ge=0)] = 1024
    """The largest rank of an adapter's factors."""
    adapter_scale: Limit = 64.0
    """The largest factor that an adapter's product is scaled by, `lora_alpha / r` for LoRA."""
    per_day: Annotated[int, BeforeValidator(switched), Field(ge=0)] = 0
    """How many folds there may be in 24 hours; those after them are held."""


class ArchiveSettings(Table):
    """Which checkpoints are copied into the state as they are folded, so that a replay does not need their places."""

    adapters: bool = True
    """Whether every adapter is copied into the archive as it is folded."""
    full: ByteSize = Field(default=ByteSize(0))
    """The most that copies of full models take in the archive, such as `100GB`; the oldest go first. 0: none is copied."""


class MetricsSettings(Table):
    """Where Prometheus finds the figures of the daemon: in a file, or at a port that only this machine reaches."""

    file: Annotated[Watched, AfterValidator(_prom)] = None
    """The file for the textfile collector of node_exporter, such as `/run/mergd/llama/mergd.prom`; none if empty."""
    listen: Annotated[str, AfterValidator(_loopback)] = ""
    """A port of this machine such as `127.0.0.1:9190`, with `/metrics` and `/healthz`; none if empty. Needs `mergd[http]`."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of `listen`, if it is set."""
        match = LISTEN.fullmatch(self.listen)
        return (match["host"].strip("[]"), int(match["port"])) if match else None


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
    """The most that downloads take on disk at once, such as `50GB`; one, and what a person asks for, is always begun. 0: one at a time."""
    bandwidth: ByteSize = Field(default=ByteSize(0), ge=0)
    """The most that downloads take of the line, each second, such as `20MB`; 0: all."""
    stream: bool = False
    """Whether a checkpoint that `spool` has no room for is folded straight from the Hub, which costs the line twice or more."""
    publish_to: Annotated[str, Field(pattern=r"^([\w.-]+/[\w.-]+)?$")] = ""
    """The repository `org/name` that each move of the head is pushed to; none if empty. It is created private."""
    publish_private_sources: bool = False
    """Whether a public repository may get versions with sources that are not known to be public."""
    write_token: str = ""
    """The file with the token that may write to `publish_to`; a relative name is one of systemd's credentials."""

    webhook_secret: str = ""
    """The file with the secret of the Hub's webhook, whose calls wake a poll; a relative name is one of systemd's credentials."""

    @model_validator(mode="after")
    def _may_write(self) -> Self:
        if self.publish_to and not self.write_token:
            raise ValueError("publish_to needs write_token: the file with the token that may write there")
        return self

    @property
    def never_here(self) -> int | None:
        """The bytes above which weights never lie on this disk; None where all may."""
        return int(self.spool) if self.stream else None


class GateSettings(Table):
    """A gate: a program that measures each drafted version."""

    command: tuple[str, ...] = ()
    """The program and its arguments; it runs as the daemon's user, as a child. The program is an absolute path."""
    socket: Annotated[str, Field(pattern=r"^(/.*)?$")] = ""
    """The socket of a systemd unit that runs it instead, as a user of its own; either this or `command`."""
    deadline: Duration = Field(default=1800.0, gt=0, allow_inf_nan=False)
    """How long it may take, such as `30m`; then it is ended, and the checkpoint held."""
    drop: Loss = 0.01
    """How far a metric may be below the head's; above it, for one that is better when lower."""
    total_drop: Loss = 0.03
    """How far a metric may be below its best on the way from the base model to the head."""
    mode: Literal["enforce", "observe"] = "enforce"
    """Whether it holds and refuses checkpoints, or only measures: `enforce`, `observe`."""

    @model_validator(mode="after")
    def _runs_one(self) -> Self:
        if bool(self.command) == bool(self.socket):
            raise ValueError("give either command or socket")
        if self.command and not self.command[0].startswith("/"):
            raise ValueError("the first word of command is no absolute path")
        return self


class HookSettings(Table):
    """Who is told of each move of the head and of each refusal: a command, a unit of systemd, or a webhook."""

    command: tuple[str, ...] = ()
    """The words of a program of yours: it gets the news as JSON on its standard input, and ends with 0."""
    socket: Annotated[str, Field(pattern=r"^(/.*)?$")] = ""
    """The socket of a unit of systemd that runs such a program outside the daemon's sandbox, by its whole path."""
    url: str = ""
    """The address that the news is posted to as JSON; shown without what follows the host."""
    secret: str = ""
    """The file with the key that signs what is posted; a relative name is one of systemd's credentials."""
    retry: Duration = 86400.0
    """For how long a piece of news is tried, from when it happened on; then it is undelivered, and the next one is told."""
    timeout: Duration = Field(default=30.0, gt=0)
    """How long one try may take; then the program is killed, or the connection closed."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(map(bool, (self.command, self.socket, self.url))) != 1:
            raise ValueError("give one of command, socket and url")
        if self.secret and not self.url:
            raise ValueError("secret signs what is posted to a url")
        return self

    @field_validator("command")
    @classmethod
    def _found(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        if command and "/" in command[0] and not os.path.isabs(command[0]):
            raise ValueError("give the program by its whole path")
        return command

    @field_validator("url")
    @classmethod
    def _web(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            whole = False
        if url and not (whole and re.fullmatch(r"[!-~]+", url)):
            raise ValueError("give an http or https address, without spaces")
        return url


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")]  # of a table, which is in file names and in the log
