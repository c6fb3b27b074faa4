"""What a unit of systemd starts for each connection: PYTHON -m mergd.plugins.run_program PROGRAM ARGUMENTS...

Its standard input is the connection (StandardInput=socket); what the program writes to its standard error goes to ours,
which the unit sends to the journal (StandardError=journal). Whoever asks gives the request alone, never the command.
"""

import os
import select
import socket
import sys
import time
from collections.abc import Sequence

from .programs import Ran, frame_of, run_child

REQUEST = 1 << 20  # bytes of a request, at most
PATIENCE = 10.0  # seconds for which whoever asks may be silent
USAGE = "run by systemd, as: PYTHON -m mergd.plugins.run_program PROGRAM ARGUMENTS..., with StandardInput=socket\n"


def answer(asker: socket.socket, command: Sequence[str]) -> None:
    """Read one request, run the command, and send one frame; the program ends when whoever asked hangs up."""
    asker.settimeout(PATIENCE)
    request = _read(asker)
    if request is None:
        ran = Ran(None, b"", f"the request is longer than {REQUEST >> 20} MiB")
    elif not request:
        return
    else:
        hangs = select.poll()
        hangs.register(asker, 0)  # a hang-up is told unasked
        own = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
        ran = run_child(command, own, request, float("inf"), lambda: bool(hangs.poll(0)), _to_the_journal)
    asker.sendall(frame_of(ran))


def _read(asker: socket.socket) -> bytes | None:
    """Return the request; None where it is too long."""
    request, until = bytearray(), time.monotonic() + PATIENCE
    while piece := asker.recv(1 << 16):
        request += piece
        if len(request) > REQUEST:
            return None
        if time.monotonic() > until:
            raise TimeoutError
    return bytes(request)


def _to_the_journal(text: bytes) -> None:
    sys.stderr.buffer.write(text)
    sys.stderr.buffer.flush()


def main() -> int:
    """Serve the connection that is the standard input."""
    try:
        asker = socket.socket(fileno=0)
    except OSError:
        asker = None
    if asker is None or len(sys.argv) < 2:
        sys.stderr.write(USAGE)
        return 2
    with asker:
        try:
            answer(asker, sys.argv[1:])
        except OSError as error:  # whoever asked is gone, or keeps silent: there is nobody to tell
            sys.stderr.write(f"no answer was given: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
