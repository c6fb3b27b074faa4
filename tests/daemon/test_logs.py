"""What the log looks like: fields at a journal of the test's own, and lines where there is none."""

import logging
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.merges import Sandbox

from mergd.daemon.journal import EXTRAS, JournalHandler
from mergd.daemon.logs import leads_to_journal

Fields = dict[str, list[str]]


class Journal:
    """A datagram socket that reads what arrives as journald does."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        self._socket.settimeout(10)

    def entry(self) -> Fields:
        """Return the fields of the next entry."""
        data, files, _, _ = socket.recv_fds(self._socket, 1 << 20, 1)
        for number in files:
            with open(number, "rb") as file:
                file.seek(0)  # the sender has written up to its end
                data = file.read()
        return read(data)

    def close(self) -> None:
        self._socket.close()


def read(data: bytes) -> Fields:
    """Return the fields of the native protocol: NAME=VALUE in a line, or NAME, the length of the value, and it."""
    found: Fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, mark, value = line.partition(b"=")
        if not mark:
            (length,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found.setdefault(name.decode(), []).append(value.decode())
        data = rest
    return found


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal")
    yield made
    made.close()


class Lines(logging.Handler):
    """Keeps the messages of the records that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def otherwise() -> Lines:
    return Lines()


@pytest.fixture
def log(tmp_path: Path, otherwise: Lines) -> Iterator[logging.Logger]:
    """A logger of its own that leads to the journal."""
    handler = JournalHandler(tmp_path / "journal", otherwise)
    handler.instance = "llama"
    logger = logging.getLogger("test_logs")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)
    handler.close()


def test_a_record_has_its_fields(journal: Journal, log: logging.Logger) -> None:
    log.warning("%s is refused", "ft-1", extra={"checkpoint": "ft-1", "reason": ("shape", "dtype"), "version": 7})
    entry = journal.entry()
    assert entry["MESSAGE"] == ["ft-1 is refused"]
    assert entry["PRIORITY"] == ["4"]
    assert entry["SYSLOG_IDENTIFIER"] == ["mergd"]
    assert entry["MERGD_INSTANCE"] == ["llama"]
    assert entry["MERGD_CHECKPOINT"] == ["ft-1"]
    assert entry["MERGD_VERSION"] == ["7"]
    assert entry["MERGD_REASON"] == ["shape", "dtype"]
    assert entry["CODE_FILE"] == [__file__]
    assert entry["CODE_FUNC"] == ["test_a_record_has_its_fields"]
    assert int(entry["CODE_LINE"][0]) > 0


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.ERROR, logging.CRITICAL])
def test_a_level_is_a_priority(journal: Journal, log: logging.Logger, level: int) -> None:
    log.log(level, "it is so")
    priorities = {logging.DEBUG: "7", logging.INFO: "6", logging.ERROR: "3", logging.CRITICAL: "2"}
    assert journal.entry()["PRIORITY"] == [priorities[level]]


@pytest.mark.parametrize("name", ["a\nPRIORITY=0", "a\n_UID=0\nMERGD_REASON=b", "a\nX\n\1\0\0\0\0\0\0\0b\n", "\n\n"])
def test_a_name_with_newlines_adds_no_field(journal: Journal, log: logging.Logger, name: str) -> None:
    log.info("plain", extra={"checkpoint": "plain"})
    log.info("%s is ready", name, extra={"checkpoint": name})
    plain, entry = journal.entry(), journal.entry()
    assert entry.keys() == plain.keys()
    assert entry["MERGD_CHECKPOINT"] == [name]
    assert entry["PRIORITY"] == ["6"]


def test_a_name_that_is_no_text_arrives_escaped(journal: Journal, log: logging.Logger) -> None:
    log.info("it is ready", extra={"checkpoint": "a\udcff"})
    assert journal.entry()["MERGD_CHECKPOINT"] == ["a\\udcff"]


def test_a_traceback_is_one_entry(journal: Journal, log: logging.Logger) -> None:
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("it failed")
    (message,) = journal.entry()["MESSAGE"]
    assert message.startswith("it failed\nTraceback")
    assert message.endswith("ValueError: no")


def test_what_is_too_large_for_a_datagram_arrives_whole(journal: Journal, log: logging.Logger) -> None:
    log.info("x" * 5_000_000)
    assert journal.entry()["MESSAGE"] == ["x" * 5_000_000]


def test_where_the_journal_is_gone_lines_are_written(log: logging.Logger, otherwise: Lines) -> None:
    log.info("it is so")
    assert otherwise.messages == ["it is so"]


# ------------------------------------------------------------------------------------------------ where stderr leads

SCRIPT = """
import logging, pathlib, sys
from mergd.daemon.logs import log_to_stderr, name_instance
log_to_stderr(False, journal=pathlib.Path(sys.argv[1]))
name_instance("llama")
logging.getLogger("mergd.x").warning("one\\ntwo")
"""


def written(tmp_path: Path, stream: str | None) -> str:
    """Return what a process writes to stderr that is given this JOURNAL_STREAM; `right` is that of its stderr."""
    with (tmp_path / "err").open("w+") as err:
        status = os.fstat(err.fileno())
        right = f"{status.st_dev}:{status.st_ino}"
        given = {} if stream is None else {"JOURNAL_STREAM": stream.replace("right", right)}
        clean = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
        words = [sys.executable, "-c", SCRIPT, str(tmp_path / "journal")]
        subprocess.run(words, env=clean | given, stderr=err, check=True)
    return (tmp_path / "err").read_text()


def test_where_stderr_leads_to_the_journal_it_gets_fields(tmp_path: Path, journal: Journal) -> None:
    assert written(tmp_path, "right") == ""
    entry = journal.entry()
    assert entry["MESSAGE"] == ["one\\ntwo"]
    assert entry["MERGD_INSTANCE"] == ["llama"]


def test_where_its_socket_is_not_there_lines_bear_their_level(tmp_path: Path) -> None:
    assert written(tmp_path, "right") == "<4>one\\ntwo\n"


@pytest.mark.parametrize("stream", [None, "", "8:1", "right0", "nonsense"])
def test_where_stderr_leads_elsewhere_lines_are_plain(tmp_path: Path, journal: Journal, stream: str | None) -> None:
    (line,) = written(tmp_path, stream).splitlines()
    assert line.endswith("WARNING one\\ntwo")
    assert line[:4].isdigit()


def test_a_stream_is_known_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        status = os.fstat(file.fileno())
        assert leads_to_journal(file.fileno(), f"{status.st_dev}:{status.st_ino}")
        assert not leads_to_journal(file.fileno(), f"{status.st_dev}:{status.st_ino + 1}")


# ------------------------------------------------------------------------------------------------- what is told of


def told(caplog: pytest.LogCaptureFixture, what: str) -> dict[str, object]:
    """Return the extra fields of the record with this text."""
    (record,) = (record for record in caplog.records if what in record.getMessage())
    return {name: getattr(record, name) for name in EXTRAS if hasattr(record, name)}


def test_what_is_folded_and_what_is_refused_is_told_by_fields(merge: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mergd")
    merge.drop("a", 1)
    merge.drop("b", {name: tensor for name, tensor in merge.fine_tuned(2).items() if "tall" not in name})
    merge.drop("c", merge.fine_tuned(3) | {"layer.tall.weight": merge.model["layer.tall.weight"] * float("nan")})
    merge.fold_all()
    assert told(caplog, "a is folded") == {"checkpoint": "a", "version": 1}
    assert told(caplog, "b is refused") == {"checkpoint": "b", "reason": ("missing-weights",)}
    assert told(caplog, "c is refused") == {"checkpoint": "c", "reason": ("not-finite",)}
