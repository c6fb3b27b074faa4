"""The fault shim sees every call that changes a file system, SQLite's too, and makes the one fatal that it is told to."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.shim import FOR_EVER, KINDS, Call, Faults, compile_shim

ALL = """
import os, shutil, sqlite3, sys
state = sys.argv[1]
os.chdir(state)
fd = os.open("made", os.O_CREAT | os.O_RDWR)
os.write(fd, b"abcd"); os.pwrite(fd, b"efgh", 4); os.writev(fd, [b"i", b"j"]); os.pwritev(fd, [b"k", b"l"], 0)
os.fsync(fd); os.fdatasync(fd); os.ftruncate(fd, 3); os.posix_fallocate(fd, 0, 4096); os.truncate("made", 5)
other = os.open(f"{state}/other", os.O_CREAT | os.O_RDWR)
os.copy_file_range(fd, other, 3, 0, 0); os.sendfile(other, fd, 0, 3)
os.rename("other", "third"); os.link("third", "fourth"); os.symlink("nowhere", "fifth")
os.mkdir("folder")
at = os.open("folder", os.O_DIRECTORY)
os.close(os.open("sixth", os.O_CREAT | os.O_WRONLY, dir_fd=at))
os.rename("sixth", "seventh", src_dir_fd=at, dst_dir_fd=at); os.unlink("seventh", dir_fd=at)
os.rmdir("folder"); os.unlink("fourth")
open(state + "-elsewhere", "w").write("not counted")
open("made").read()
"""
SQLITE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1] + "/mergd.db", isolation_level=None)
db.execute("pragma journal_mode=wal"); db.execute("pragma synchronous=full")
db.execute("create table t(x)"); db.execute("insert into t values (1)")
db.execute("pragma wal_checkpoint(truncate)"); db.close()
"""


class Bench:
    """A state folder, and processes that are watched."""

    def __init__(self, root: Path, faults: Faults) -> None:
        self.faults, self.state = faults, root / "state"
        self.state.mkdir()
        self._library = compile_shim(root)

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | self.faults.environment(self._library)
        words = [sys.executable, "-c", code, str(self.state)]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Faults(tmp_path / "control") as faults:
        yield Bench(tmp_path, faults)


def test_every_kind_of_call_is_seen_with_its_path_and_none_from_elsewhere(bench: Bench) -> None:
    bench.faults.arm(bench.state)
    done = bench.run(ALL)
    assert done.returncode == 0, done.stderr
    calls = bench.faults.calls()
    assert {call.kind for call in calls} == set(KINDS)
    assert [call.number for call in calls] == [*range(1, len(calls) + 1)] == [*range(1, bench.faults.count + 1)]
    assert [str(call) for call in calls] == [
        "create made", "write made", "write made", "write made", "write made", "fsync made", "fdatasync made",
        "truncate made", "allocate made", "truncate made", "create other", "copy other", "copy other",
        "rename other -> third", "link third -> fourth", "symlink fifth", "mkdir folder", "create folder/sixth",
        "rename folder/sixth -> folder/seventh", "unlink folder/seventh", "rmdir folder", "unlink fourth",
    ]  # fmt: skip


def test_what_sqlite_does_is_seen(bench: Bench) -> None:
    bench.faults.arm(bench.state)
    done = bench.run(SQLITE)
    assert done.returncode == 0, done.stderr
    seen = {(call.kind, call.path) for call in bench.faults.calls()}
    assert {("write", "mergd.db"), ("write", "mergd.db-wal"), ("fdatasync", "mergd.db-wal")} <= seen
    assert {("create", "mergd.db"), ("unlink", "mergd.db-wal")} <= seen


def test_it_kills_before_the_call_that_it_is_told(bench: Bench) -> None:
    bench.faults.arm(bench.state, "kill", first=14)
    assert bench.run(ALL).returncode == -signal.SIGKILL
    assert bench.faults.count == 14
    assert bench.faults.calls()[-1] == Call(14, "rename", "other", "third")
    assert (bench.state / "other").exists()


def test_it_tears_a_write_and_kills(bench: Bench) -> None:
    bench.faults.arm(bench.state, "tear", first=2)
    assert bench.run(ALL).returncode == -signal.SIGKILL
    assert (bench.state / "made").read_bytes() == b"ab"


def test_it_fails_calls_of_some_kinds_with_an_error(bench: Bench) -> None:
    bench.faults.arm(bench.state, "fail", last=FOR_EVER, error=errno.ENOSPC, kinds=("write", "allocate"))
    done = bench.run(ALL)
    assert done.returncode == 1
    assert "[Errno 28]" in done.stderr
    assert (bench.faults.count, bench.faults.fired) == (1, 1)
    assert (bench.state / "made").read_bytes() == b""


def test_it_lets_half_of_a_write_go_by(bench: Bench) -> None:
    bench.faults.arm(bench.state, "short", kinds=("write",))
    assert bench.run("import os,sys; print(os.write(os.open(sys.argv[1] + '/a', os.O_CREAT | os.O_WRONLY), b'abcd'))"
                     ).stdout == "2\n"  # fmt: skip


def test_a_forked_child_counts_on(bench: Bench) -> None:
    bench.faults.arm(bench.state)
    bench.run("import os,sys; os.mkdir(sys.argv[1] + '/a'); os.fork(); os.mkdir(sys.argv[1] + f'/{os.getpid()}')")
    assert bench.faults.count == 3


def test_a_disarmed_shim_sees_nothing(bench: Bench) -> None:
    bench.faults.arm(bench.state, "kill")
    bench.faults.disarm()
    assert bench.run(ALL).returncode == 0
    assert bench.faults.count == 0
