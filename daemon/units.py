"""The units of systemd, as texts: what `mergd service` writes for one merge, one of its gates or one of its hooks. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Literal

from ..state.errors import Misconfigured
from .settings import Settings

SYSTEM, USERS = Path("/etc/systemd/system"), Path("/etc/sysusers.d/mergd.conf")
STATES, SOCKETS = Path("/var/lib/mergd"), Path("/run/mergd-programs")
CACHES = Path("/var/cache/mergd")
USER = "mergd"  # and the group that may ask the daemon
MARK = "# Written by mergd service"  # what begins so is overwritten and removed by it, and nothing else is
READ_TOKEN = "hub-read"  # noqa: S105 - the name of the credential with the token that reads from the Hub
# Bytes that a daemon takes beside its working buffers, with room to spare: torch, the history, small weights.
BESIDE = 2**30
HALVES = 3  # of the working buffers that it may take
RELOADS_SINCE = 253  # the systemd that knows Type=notify-reload
Network = Literal["none", "loopback", "all"]
Kind = Literal["gate", "hook"]
KINDS: tuple[Kind, ...] = ("gate", "hook")


@dataclass(frozen=True)
class Place:
    """What a merge's service is made from, besides what the template says."""

    name: str
    config: Path
    python: str  # the interpreter, by its absolute path
    settings: Settings
    buffers: int  # bytes of working buffers
    systemd: int = 0  # its version
    user: str = USER
    groups: tuple[str, ...] = ()  # of that user
    credentials: Mapping[str, Path] = field(default_factory=dict)  # which are there, by name
    gpu: bool = False
    units: Path = SYSTEM
    own: bool = False  # whether it is a user's own service


def service_files(place: Place) -> dict[Path, str]:
    """Return what is written for a merge's service, by path."""
    template = "mergd-user@.service" if place.own else "mergd@.service"
    users = {} if place.own else {USERS: packaged("sysusers.conf")}
    marked = f"{MARK} install: change it by a drop-in, systemctl edit mergd@NAME.\n"
    return users | {
        place.units / "mergd@.service": marked + packaged(template),
        drop_in(place.units, place.name): "\n".join([marked, *_drop_in(place), ""]),
    }


def packaged(name: str) -> str:
    """Return a file of systemd/."""
    return files("mergd.systemd").joinpath(name).read_text()


def drop_in(units: Path, name: str) -> Path:
    """Return where lies what is a merge's own."""
    return units / f"mergd@{name}.service.d" / "mergd.conf"


def network_of(settings: Settings) -> Network:
    """Return what a merge needs of the network: nothing where it has its base model and its checkpoints from folders."""
    hub, base = settings.hub, Path(settings.base_model).expanduser()
    urls = [hook.url for hook in settings.hook.values()]
    packages = settings.source != "directory" or settings.hooks  # which nobody knows
    if hub.namespace or hub.publish_to or any(urls) or packages or not base.exists():
        return "all"
    return "loopback" if settings.metrics.listen else "none"


def base_files(settings: Settings, merge: str) -> tuple[Path, ...]:
    """Return where the base model's files really are; of one from the Hub, its repository in the service's cache."""
    if not (base := Path(settings.base_model).expanduser()).exists():
        repository = settings.base_model.partition("@")[0].replace("/", "--")
        return (CACHES / merge / "hf" / "hub" / f"models--{repository}",)
    real = base.resolve()
    links = {path.resolve() for path in real.rglob("*") if path.is_symlink()}
    return real, *sorted(path for path in links if path.exists() and not path.is_relative_to(real))


def credentials_of(settings: Settings) -> tuple[str, ...]:
    """Return the names of the credentials that the configuration names; the token that reads from the Hub is one more."""
    named = [settings.hub.write_token, settings.hub.webhook_secret, *(hook.secret for hook in settings.hook.values())]
    return tuple(dict.fromkeys(name for name in named if name and not Path(name).is_absolute()))


# --------------------------------------------------------------------------------------------------- a merge's service


def _drop_in(place: Place) -> Iterator[str]:
    yield from _unit(place)
    yield "[Service]"
    config = "-n %i" if place.config == Path("/etc/mergd") / f"{place.name}.toml" else f"-c {_word(str(place.config))}"
    yield from ("ExecStart=", f"ExecStart={_word(place.python)} -m mergd run {config}")
    if place.systemd >= RELOADS_SINCE:
        yield from ("Type=notify-reload", "ExecReload=")
    yield from ("# The setting memory, and what a daemon takes beside it.", f"MemoryMax={memory_max(place.buffers)}")
    if place.own:
        return
    yield from _user(place)
    yield from _paths(place)
    yield from _network(place)
    yield from _credentials(place)
    if place.gpu:
        yield from _gpu()


def _unit(place: Place) -> Iterator[str]:
    mounts = [path for path in (place.settings.watch, _base(place), place.settings.state) if path is not None]
    yield "[Unit]"
    yield f"RequiresMountsFor={' '.join(map(quoted, mounts))}"


def _base(place: Place) -> Path | None:
    base = Path(place.settings.base_model).expanduser()
    return base if base.exists() else None


def memory_max(buffers: int) -> int:
    """Return the most memory that a service may take."""
    return BESIDE + buffers * HALVES // 2


def _user(place: Place) -> Iterator[str]:
    if place.user != USER:
        yield from (f"User={place.user}", f"SupplementaryGroups={' '.join(place.groups)}")


def _paths(place: Place) -> Iterator[str]:
    state = place.settings.state
    if state != STATES / place.name:
        yield from ("StateDirectory=", f"BindPaths={quoted(state)}")
    if place.settings.metrics.file:
        yield f"ReadWritePaths={quoted(place.settings.metrics.file.parent, '-')}"
    read = [path for path in (place.settings.watch, _base(place)) if path is not None]
    if read:
        yield f"BindReadOnlyPaths={' '.join(quoted(path, '-') for path in read)}"


def _network(place: Place) -> Iterator[str]:
    network = network_of(place.settings)
    if network == "none":
        yield "# Neither the Hub nor a URL is in the configuration."
        yield from ("PrivateNetwork=yes", "RestrictAddressFamilies=", "RestrictAddressFamilies=AF_UNIX")
    if network != "all":
        yield "IPAddressDeny=any"
    if network == "loopback":
        yield "IPAddressAllow=localhost"
    if network == "all" and not (place.settings.watch and place.settings.limits.share):
        yield "# Who asks, and whose a checkpoint is, is told as nobody then; without network it is known."
        yield "PrivateUsers=yes"


def _credentials(place: Place) -> Iterator[str]:
    yield from (f"LoadCredential={name}:{quoted(path)}" for name, path in place.credentials.items())
    if READ_TOKEN in place.credentials:
        yield f"Environment=HF_TOKEN_PATH=%d/{READ_TOKEN}"


def _gpu() -> Iterator[str]:
    yield "# CUDA maps its devices, and compiles."
    yield from ("PrivateDevices=no", "MemoryDenyWriteExecute=no")
    yield from (f"DeviceAllow=char-{kind} rw" for kind in ("nvidia", "nvidia-uvm", "nvidia-caps", "nvidia-frontend"))


def quoted(path: Path | str, before: str = "") -> str:
    """Return a path as one word of a unit file. Raises Misconfigured where no two kinds of lines would read it alike."""
    text = str(path).replace("%", "%%")
    if any(c in "\"'\\" or not c.isprintable() for c in text):
        raise Misconfigured(
            f"{str(path)!r} cannot stand in a unit file", "give it a name without quotes and backslashes"
        )
    return f'"{before}{text}"' if set(text) & set(" :;#") else f"{before}{text}"


# --------------------------------------------------------------------------------------- the program of a gate or a hook


@dataclass(frozen=True)
class Program:
    """A program of the administrator's that a daemon may have run, and what it is given."""

    kind: Kind
    merge: str
    name: str
    command: Sequence[str]
    python: str
    state: Path
    asker: str = USER  # the daemon's user, who alone may have it run
    user: str = ""  # that it runs as; empty: one that systemd makes up
    memory: str = "8G"
    seconds: int = 3600
    network: bool = False
    gpu: bool = False
    reads: tuple[Path, ...] = ()
    base: tuple[Path, ...] = ()  # what a gate reads of the base model

    @property
    def unit(self) -> str:
        """The name that the units share. One name for both, or connections would lose which gate was asked."""
        return f"mergd-{self.kind}-{self.merge}--{self.name}"

    @property
    def socket(self) -> Path:
        """Where the daemon asks."""
        return SOCKETS / self.merge / f"{self.kind}-{self.name}.sock"


def program_files(program: Program, units: Path = SYSTEM) -> dict[Path, str]:
    """Return what is written for a program, by path."""
    marked = f"{MARK} {program.kind}: change it by a drop-in.\n"
    return {
        units / f"{program.unit}.socket": marked + "\n".join(_socket(program)) + "\n",
        units / f"{program.unit}@.service": marked + "\n".join(_service(program)) + "\n",
    }


def _socket(program: Program) -> Iterator[str]:
    yield from ("[Unit]", f"Description=mergd: where {program.merge} asks its {program.kind} {program.name}", "")
    yield from ("[Socket]", f"ListenStream={quoted(program.socket)}", "Accept=yes")
    yield "MaxConnections=2"  # what was given up may still be ending when the next is asked
    yield from (f"SocketUser={program.asker}", "SocketMode=0600", "DirectoryMode=0755")
    yield from ("RemoveOnStop=yes", "", "[Install]", "WantedBy=sockets.target")


def _service(program: Program) -> Iterator[str]:
    words = (program.python, "-m", "mergd.plugins.run_program", *program.command)
    yield from ("[Unit]", f"Description=mergd: the {program.kind} {program.name} of {program.merge}")
    yield from ("CollectMode=inactive-or-failed", "", "[Service]")
    yield f"ExecStart={' '.join(_word(word) for word in words)}"
    yield from ("StandardInput=socket", "StandardOutput=journal", "StandardError=journal", "LimitCORE=0")
    yield f"User={program.user}" if program.user else "DynamicUser=yes"
    yield from ("OOMPolicy=kill", "KillMode=control-group", "TimeoutStopSec=5s", "UMask=0077")
    yield from (f"MemoryMax={program.memory}", "MemorySwapMax=0", f"RuntimeMaxSec={program.seconds}")
    yield "# Of the state it sees the models, and the one that is being judged; nothing can be changed."
    yield from ("ProtectSystem=strict", "ProtectHome=tmpfs", "PrivateTmp=yes", "PrivateMounts=yes")
    cache = CACHES / program.merge  # closed to others, but for a base model from the Hub
    over = [program.state, *([cache] if any(path.is_relative_to(cache) for path in program.base) else [])]
    yield f"TemporaryFileSystem={' '.join(f'{quoted(path)}:ro' for path in over)}"
    shown = [program.state / "models", program.state / "drafts", *program.base, *program.reads]
    yield f"BindReadOnlyPaths={' '.join(quoted(path, '-') for path in shown)}"
    yield "InaccessiblePaths=-/etc/mergd -/run/mergd -/run/credentials"
    yield from ("NoNewPrivileges=yes", "CapabilityBoundingSet=", "RestrictSUIDSGID=yes", "LockPersonality=yes")
    yield from ("ProtectKernelTunables=yes", "ProtectKernelModules=yes", "ProtectKernelLogs=yes", "ProtectClock=yes")
    yield from ("ProtectControlGroups=yes", "ProtectHostname=yes", "ProtectProc=invisible", "RestrictRealtime=yes")
    yield from ("RestrictNamespaces=yes", "SystemCallArchitectures=native", "SystemCallFilter=@system-service")
    if not program.network:
        yield from ("PrivateNetwork=yes", "IPAddressDeny=any", "RestrictAddressFamilies=AF_UNIX")
    if program.gpu:
        yield from (f"DeviceAllow=char-{kind} rw" for kind in ("nvidia", "nvidia-uvm", "nvidia-caps"))
    else:
        yield from ("PrivateDevices=yes", "DevicePolicy=closed")


def _word(word: str) -> str:
    """Return a word of a command."""
    return quoted(word).replace("$", "$$") or '""'
