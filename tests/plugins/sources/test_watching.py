"""What ends the events of a watched folder, each as it really happens: after two scans at most they come again.

And while they do not, each scan sees all that is there.
"""

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import repository
from contracts.source import PATIENCE
from support.commands import eventually
from support.models import save_lone, save_model, tiny_base

from mergd.plugins.sources.directory import Directory, network, watching
from mergd.plugins.sources.directory.watching import Watching

FLOOD = 20_000  # files; the kernel's queue takes 16,384 events

BETWEEN = 0.5  # seconds; rescans are a minute apart


class Watched:
    """A watched folder, and whether its source was woken."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root, self.woken, self.source = root, threading.Event(), Directory(root)
        self.source.watch(self.woken.set)

    @property
    def watching(self) -> Watching:
        return self.source._watching

    def scan_twice(self) -> list[str]:
        """Return what the second of two scans sees, a moment apart: what the first is too early for reaches its thread."""
        self.source.scan()
        time.sleep(BETWEEN)
        return [sighting.name for sighting in self.source.scan().sightings]

    def is_awake(self) -> bool:
        """Whether a checkpoint that is dropped now wakes the scan."""
        self.woken.clear()
        save_model(self.root / "awake", tiny_base())
        return self.woken.wait(PATIENCE)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path / "watch")
    yield watched
    watched.source.close()


@pytest.fixture
def quiet_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a thread die of an exception without a word."""
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)


def test_a_handler_that_raised_has_killed_the_observer(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, quiet_death: None
) -> None:
    def raises(*arguments: object) -> None:
        raise ArithmeticError("a test")

    observer = watched.watching._observer
    assert observer is not None
    with monkeypatch.context() as patch:
        patch.setattr(watching._Wake, "on_any_event", raises)
        save_model(watched.root / "a", tiny_base())
        eventually(lambda: not observer.is_alive())
    assert watched.scan_twice() == ["a"]
    assert watched.is_awake()


@pytest.mark.parametrize("which", ["observer", "emitter", "reader"])
def test_a_thread_that_died(watched: Watched, which: str) -> None:
    observer = watched.watching._observer
    assert observer is not None
    (emitter,) = observer.emitters
    thread = {"observer": observer, "emitter": emitter, "reader": getattr(observer, "_inotify_fd", None)}[which]
    assert thread is not None
    thread.stop()
    eventually(lambda: not thread.is_alive())
    assert watched.scan_twice() == []
    assert watched.is_awake()


def test_a_root_that_was_deleted_and_made_anew(watched: Watched) -> None:
    shutil.rmtree(watched.root)
    watched.root.mkdir()
    save_model(watched.root / "a", tiny_base())
    assert watched.scan_twice() == ["a"]
    assert watched.is_awake()


def test_a_root_that_was_moved_away_and_replaced(watched: Watched) -> None:
    watched.root.rename(watched.root.with_name("moved"))
    watched.root.mkdir()
    save_model(watched.root / "a", tiny_base())
    assert watched.scan_twice() == ["a"]
    assert watched.is_awake()


@pytest.mark.parametrize(("call", "number"), [("inotify_add_watch", errno.ENOSPC), ("inotify_init", errno.EMFILE)])
def test_no_events_are_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def at_its_limit(*arguments: object) -> int:
        ctypes.set_errno(number)
        return -1

    with monkeypatch.context() as patch:
        patch.setattr(f"watchdog.observers.inotify_c.{call}", at_its_limit)
        watched = Watched(tmp_path / "watch")
        save_model(watched.root / "a", tiny_base())
        threads = threading.active_count()
        for _ in range(3):
            assert watched.scan_twice() == ["a"]
        assert threading.active_count() <= threads  # each scan tries again, and leaves nothing behind
    watched.scan_twice()
    assert watched.is_awake()
    watched.source.close()


def reader_of(watched: Watched) -> Any:
    """Return the thread that empties the kernel's queue."""
    return getattr(watched.watching._observer, "_inotify_fd")  # noqa: B009 - no attribute that its type has


def test_the_kernels_queue_overflows(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """The reader is stopped by the lock that it takes for each event, while more files come than the queue holds."""
    reader = reader_of(watched)
    with reader._lock:
        for k in range(FLOOD):
            os.close(os.open(watched.root / f"{k}.txt", os.O_CREAT | os.O_WRONLY))
        save_lone(watched.root / "z.safetensors", tiny_base())
        watched.woken.clear()
    assert watched.woken.wait(PATIENCE)
    eventually(lambda: "queue overflowed" in caplog.text)
    assert watched.scan_twice() == ["z.safetensors"]
    assert watched.is_awake()


def test_an_overflow_wakes_the_scan_by_itself(watched: Watched) -> None:
    lost: Any = SimpleNamespace(is_queue_overflow=True)
    reader = reader_of(watched)
    watched.woken.clear()
    reader.handle_event(lost)
    assert watched.woken.is_set()
    watched.source.close()
    watched.woken.clear()
    reader.handle_event(lost)
    assert not watched.woken.is_set()


def test_on_a_network_file_system_there_is_no_observer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "MAGIC", frozenset({magic_of(tmp_path)}))
    threads = threading.active_count()
    watched = Watched(tmp_path / "watch")
    save_model(watched.root / "a", tiny_base())
    assert watched.scan_twice() == ["a"]
    assert threading.active_count() == threads
    assert not watched.woken.is_set()
    monkeypatch.undo()
    watched.scan_twice()
    assert watched.is_awake()
    watched.source.close()


def magic_of(path: Path) -> int:
    """Return what kind of file system a path lies on, as stat(1) says."""
    return int(subprocess.run(["stat", "-f", "-c", "%t", path], capture_output=True, check=True).stdout, 16)


@pytest.mark.parametrize("mounted", ["/proc", "/dev/shm", "/"])
def test_the_file_systems_of_this_machine_are_known_for_what_they_are(mounted: str) -> None:
    assert network.on_network(Path(mounted)) == (magic_of(Path(mounted)) in network.MAGIC)
    assert not network.on_network(Path(mounted) / "no-such-place")


# --------------------------------------------------------------------------------------- what needs a machine of its own

IN_NAMESPACE = """
import os, subprocess, sys, threading
from pathlib import Path
sys.path[:0] = {path!r}
from mergd.plugins.sources.directory import Directory

def mount(*words):
    subprocess.run(["mount", *words], check=True)

def drop(name):
    (root / name).mkdir()
    (root / name / "model.safetensors").write_bytes(b"x")

root, woken = Path({root!r}), threading.Event()
source = Directory(root)
"""


def in_namespace(tmp_path: Path, kinds: list[str], body: str) -> None:
    """Run Python lines in new namespaces; where there can be none, the test is skipped."""
    if subprocess.run(["unshare", *kinds, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"no new namespaces here: unshare {' '.join(kinds)}")
    root = tmp_path / "watch"
    root.mkdir()
    head = IN_NAMESPACE.format(path=[str(repository.ROOT / ".types"), *sys.path], root=str(root))
    words = ["unshare", *kinds, sys.executable, "-c", head + textwrap.dedent(body)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE * 3, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_root_that_was_unmounted(tmp_path: Path) -> None:
    in_namespace(
        tmp_path,
        ["--user", "--map-root-user", "--mount"],
        """
        mount("-t", "tmpfs", "tmpfs", str(root))
        source.watch(woken.set)
        drop("a")
        assert [s.name for s in source.scan().sightings] == ["a"]
        subprocess.run(["umount", str(root)], check=True)
        for _ in range(2):
            assert source.scan().sightings == ()
        woken.clear()
        drop("b")
        assert woken.wait(20)
        assert [s.name for s in source.scan().sightings] == ["b"]
        mount("-t", "tmpfs", "tmpfs", str(root))  # and another one in its place
        for _ in range(2):
            assert source.scan().sightings == ()
        woken.clear()
        drop("c")
        assert woken.wait(20)
        source.close()
        """,
    )


def test_the_limit_of_watches_is_reached(tmp_path: Path) -> None:
    in_namespace(
        tmp_path,
        ["--user", "--map-root-user"],
        """
        limit = Path("/proc/sys/user/max_inotify_watches")
        limit.write_text("3")
        source.watch(woken.set)
        for k in range(9):
            drop(str(k))
        for _ in range(2):
            seen = [s.name for s in source.scan().sightings]
        assert seen == [str(k) for k in range(9)]
        limit.write_text("1000")
        for k in range(9):
            (root / str(k) / "config.json").write_text("{}")
        assert all(len(s.stamps) == 2 for s in source.scan().sightings)
        source.close()
        limit.write_text("0")
        source.watch(woken.set)  # not even the root
        drop("last")
        for _ in range(2):
            assert "last" in [s.name for s in source.scan().sightings]
        limit.write_text("1000")
        for _ in range(2):
            source.scan()
        woken.clear()
        drop("after")
        assert woken.wait(20)
        source.close()
        """,
    )
