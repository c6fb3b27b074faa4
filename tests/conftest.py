"""What every test gets: merges to work with, and a watch over threads and files that a test leaves behind."""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import repository
from support.installing import install, on_the_path
from support.merges import Sandbox, make_merge

hypothesis.settings.register_profile("untimed", deadline=None)  # a test says what is right, not how fast the machine is
hypothesis.settings.load_profile("untimed")
GRACE = 3.0  # seconds that a thread or a file may take to go away by itself
# Opened once for the whole process, by whoever needs it first: Python's and torch's random numbers and event polls.
KEPT_OPEN = ("/dev/null", "/dev/urandom", "anon_inode:[eventpoll]")


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread or an open file behind: a daemon lives for months, and has 1024 files."""
    threads, files = set(threading.enumerate()), open_files()
    yield
    until = time.monotonic() + GRACE
    while leaked := left_behind(threads, files):
        if time.monotonic() > until:
            pytest.fail(f"left behind: {', '.join(leaked)}")
        gc.collect()  # a cycle that still holds a file is no leak
        time.sleep(0.01)


def left_behind(threads: set[threading.Thread], files: set[tuple[int, str]]) -> list[str]:
    """Return what is there now and was not before."""
    return [thread.name for thread in set(threading.enumerate()) - threads] + [
        f"file {number} ({target})" for number, target in open_files() - files
    ]


def open_files() -> set[tuple[int, str]]:
    """Return the open files of this process: descriptor and what it leads to."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the one that listed them
            continue
        if target not in KEPT_OPEN:
            found.add((int(number), target))
    return found


@pytest.fixture
def merge(tmp_path: Path) -> Sandbox:
    """An initialised merge of the tiny base model, with nothing dropped yet."""
    return make_merge(tmp_path)


@pytest.fixture
def new_merge(tmp_path: Path) -> Callable[..., Sandbox]:
    """Make further merges: `new_merge("other", rule="average")`."""
    return lambda name="other", *arguments, **settings: make_merge(tmp_path / name, *arguments, **settings)


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the package in tests/third_party was installed."""
    return install(repository.ROOT / "tests" / "third_party", tmp_path_factory.mktemp("third-party") / "site")


@pytest.fixture
def their_news(third_party: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have the plugins of tests/third_party found; returns the file of their hook's news."""
    news = tmp_path / "news"
    news.touch()
    monkeypatch.setenv("THEIR_NEWS", str(news))
    with on_the_path(third_party):
        yield news
