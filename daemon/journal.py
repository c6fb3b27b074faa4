"""The journal's native protocol: each log record as one datagram of fields, so that a value with a newline adds no field."""

import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

JOURNAL = Path("/run/systemd/journal/socket")
PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
EXTRAS = ("checkpoint", "version", "reason")  # what log calls may give by `extra`: MERGD_CHECKPOINT, and so on
PATIENCE = 5.0  # seconds that a journal may keep us waiting
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class JournalHandler(logging.Handler):
    """Sends records to the journal, and to `otherwise` what it does not take."""

    def __init__(self, address: Path, otherwise: logging.Handler) -> None:
        super().__init__()
        self._address, self._otherwise = str(address), otherwise
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(PATIENCE)
        self.instance = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        try:
            self._send(b"".join(_field(name, value) for name, value in self._fields(record)))
        except OSError:  # the journal is gone, or hangs
            self._otherwise.handle(record)
        except Exception:  # noqa: BLE001 - logging's own way with a record that cannot be formatted
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> Iterator[tuple[str, object]]:
        yield "MESSAGE", self.format(record)
        yield "PRIORITY", PRIORITIES.get(record.levelname, 5)
        yield "SYSLOG_IDENTIFIER", "mergd"
        yield "CODE_FILE", record.pathname
        yield "CODE_LINE", record.lineno
        yield "CODE_FUNC", record.funcName
        if self.instance:
            yield "MERGD_INSTANCE", self.instance
        for name in EXTRAS:
            given = getattr(record, name, ())
            for value in given if isinstance(given, tuple) else (given,):
                yield f"MERGD_{name.upper()}", value

    def _send(self, datagram: bytes) -> None:
        try:
            self._socket.sendto(datagram, self._address)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            self._send_by_file(datagram)

    def _send_by_file(self, fields: bytes) -> None:
        """Send what is too large for a datagram as a sealed file in memory, as the protocol has it."""
        file = os.memfd_create("mergd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(file, "wb") as written:
            written.write(fields)
            written.flush()
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file))
            self._socket.sendmsg([b""], [rights], 0, self._address)  # socket.send_fds takes no address


def _field(name: str, value: object) -> bytes:
    """Return a field with its value's length before it, so that no value ends early."""
    data = str(value).encode(errors="backslashreplace")
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
