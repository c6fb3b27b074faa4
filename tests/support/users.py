"""Other users at a control socket: real ones, each a process of its own. Only root can become them."""

import os
import socket
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from support.commands import FORKING

from mergd.daemon.cli import main
from mergd.daemon.control import ask
from mergd.daemon.requests import Resume
from mergd.state.errors import MergdError


def asks_as(folder: Path, uid: int, gid: int, *groups: int) -> Any:
    """Have a user ask the daemon whose socket lies in a folder; returns the result, or what was raised."""
    ours, theirs = FORKING.Pipe()
    process = FORKING.Process(target=_ask_as, args=(theirs, str(folder), uid, gid, groups))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()
        process.close()
        ours.close()


def _ask_as(answer: Connection, folder: str, uid: int, gid: int, groups: tuple[int, ...]) -> None:
    os.chdir(folder)  # who is there needs no right to get there
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)
    try:
        answer.send(ask(Path("control.sock"), Resume(), lambda text: None))
    except MergdError as error:
        answer.send((str(error), error.hint, error.exit_code))


def be_mergd(uid: int, place: str, words: list[str]) -> None:
    """Be a command of another user, in a folder of theirs; what it prints lies there."""
    os.chdir(place)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.environ["HOME"] = place
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    sys.argv = ["mergd", *words]
    main()


def knocks(folder: Path) -> socket.socket:
    """Return a raw connection to the socket in a folder, however deep it lies."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{fd}/control.sock")
    finally:
        os.close(fd)
    return connection
