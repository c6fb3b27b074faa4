"""The commands that make a merge a service of systemd, and a user's program one that the service may have run."""

import os
import pwd
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..state.errors import MergdError, Misconfigured, Usage
from . import display, installing, seeing, uninstalling
from .cli_options import ConfigOption
from .configuration import SYSTEM_FOLDER, read_settings
from .settings import Settings
from .settings_tables import absolute
from .units import CACHES, KINDS, SYSTEM, USER, Kind, Program, base_files, program_files, service_files

service = typer.Typer(
    help="Make a merge a service of systemd, hardened, and take it away again.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
NameOption = Annotated[str, typer.Option("-n", "--name", metavar="NAME", help="The merge of /etc/mergd/NAME.toml.")]
OwnOption = Annotated[bool, typer.Option("--user", help="A service of your own service manager, not the machine's.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Only print what would be written.")]
ProgramOption = Annotated[str, typer.Option("--program", metavar="PROGRAM", help="Its name in the configuration.")]


@service.command()
def install(
    name: NameOption,
    user_name: Annotated[
        str, typer.Option("--user-name", help="Run as this user, such as the trainer whose files nobody else may read.")
    ] = USER,
    own: OwnOption = False,
    dry: DryOption = False,
    config: ConfigOption = None,
) -> None:
    """Write the units of a merge that init made, and have it run, now and from every boot on. May be repeated."""
    if not dry:
        installing.check_may(own)
    place = installing.place_of(name, config or _config(name), _me() if own else user_name, own)
    files = service_files(place)
    if dry:
        _print(files)
        return
    if not own:
        seeing.check_config(place.config)
        seeing.check_interpreter(name, place.python, place.user)
    _say(installing.install(place, files))


@service.command()
def uninstall(
    name: NameOption,
    purge: Annotated[
        bool, typer.Option("--purge", help="Also delete state and configuration, if you type the name.")
    ] = False,
    gate: Annotated[str, typer.Option("--gate", metavar="PROGRAM", help="Only the units of this gate.")] = "",
    hook: Annotated[str, typer.Option("--hook", metavar="PROGRAM", help="Only the units of this hook.")] = "",
    own: OwnOption = False,
    config: ConfigOption = None,
) -> None:
    """Stop a merge's service, and remove what install wrote. State, configuration and the watched folder stay."""
    if sum(map(bool, (gate, hook, purge or own))) > 1:
        raise Usage("only one of --gate and --hook, and neither --user nor --purge", "one after the other")
    installing.check_may(own)
    installing.check_name(name)
    if gate or hook:
        _say(uninstalling.uninstall_program("gate" if gate else "hook", name, gate or hook))
        return
    path = config or _config(name)
    settings = _settings_if_sound(path)
    if purge:
        settings = read_settings(path)
        uninstalling.check_purge(settings)
        if typer.prompt(f"To delete {settings.state} and {path}, type {name}", err=True) != name:
            raise Usage("nothing was removed: that was not its name", "without --purge, state and configuration stay")
    done = uninstalling.uninstall(name, own, _units(own))
    if purge and settings is not None:
        done.removed += uninstalling.purge(settings, path, name, own)
    else:
        done.left += [f"the state: {settings.state}"] if settings else []
        done.left.append(f"the configuration: {path}")
    if not own:
        secrets = sorted(set(SYSTEM_FOLDER.glob(f"{name}.*")) - {path})
        done.left += [f"the credential {secret}" for secret in secrets]
        cache = CACHES / name
        done.left.append(f"the user {USER}" + (f", and what is in {cache}" if cache.exists() else ""))
    _say(done)


def _program(kind: Kind) -> None:
    """Add the command that writes the units of such a program."""

    def write(
        command: Annotated[
            list[str], typer.Argument(help="The program, by its absolute path, and its arguments; after --.")
        ],
        name: NameOption,
        program: ProgramOption,
        user_name: Annotated[
            str, typer.Option("--user-name", help="Run as this user; else as one that systemd makes up.")
        ] = "",
        memory: Annotated[str, typer.Option(help="The most memory that it may take.")] = "8G",
        seconds: Annotated[int, typer.Option(help="The longest that it may run.")] = 3600,
        network: Annotated[bool, typer.Option("--network", help="Let it use the network.")] = False,
        gpu: Annotated[bool, typer.Option("--gpu", help="Let it use the GPUs.")] = False,
        read: Annotated[list[Path] | None, typer.Option(help="What it may read though it lies in a home.")] = None,
        dry: DryOption = False,
        config: ConfigOption = None,
    ) -> None:
        settings = read_settings(config or _config(name))
        installing.check_name(name)
        installing.check_name(program)
        if not Path(command[0]).is_absolute():
            raise Misconfigured(f"{command[0]} is no absolute path", "say where the program lies")
        asker = installing.asker_of(name)
        made = Program(
            kind, name, program, command, sys.executable, settings.state, asker, user_name, memory, seconds, network, gpu,
            tuple(Path(absolute(path)) for path in read or ()), base_files(settings, name) if kind == "gate" else (),
        )  # fmt: skip
        if dry:
            _print(program_files(made))
            return
        installing.check_may(own=False)
        seeing.check_program(made)
        _say(installing.install_program(made, program_files(made)))

    write.__doc__ = (
        f"Write the units of a {kind}: a program outside the daemon's sandbox, which it may have run, not choose."
    )
    service.command(kind)(write)


for kind in KINDS:
    _program(kind)


def _config(name: str) -> Path:
    installing.check_name(name)
    return SYSTEM_FOLDER / f"{name}.toml"


def _me() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _units(own: bool) -> Path:
    return Path("~/.config/systemd/user").expanduser() if own else SYSTEM


def _settings_if_sound(path: Path) -> Settings | None:
    try:
        return read_settings(path)
    except MergdError:
        return None


def _print(files: dict[Path, str]) -> None:
    for path, text in files.items():
        sys.stdout.write(f"# {path}\n{text}\n")


def _say(done: installing.Done) -> None:
    display.lines(f"wrote {display.safe(path)}" for path in done.written)
    display.lines(f"removed {display.safe(path)}" for path in done.removed)
    display.lines(f"left: {display.safe(what)}" for what in done.left)
    display.lines(map(display.safe, done.notes))
