"""The lock of a state: what another put in its place is neither followed, waited for nor written to."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mergd.state.errors import Misconfigured
from mergd.state.lock import Lock, holder_of

PUT: dict[str, Callable[[Path, Path], None]] = {
    "a symlink": lambda path, target: path.symlink_to(target),
    "a symlink to nothing": lambda path, target: path.symlink_to(target.with_name("new")),
    "a hard link": lambda path, target: os.link(target, path),
    "a pipe": lambda path, target: os.mkfifo(path),
    "a folder": lambda path, target: path.mkdir(),
}


@pytest.mark.parametrize("put", PUT)
def test_what_is_no_file_of_its_own_is_refused_and_not_touched(tmp_path: Path, put: str) -> None:
    target = tmp_path / "target"
    target.write_text("another's")
    target.chmod(0o600)
    PUT[put](tmp_path / "lock", target)
    with pytest.raises(Misconfigured, match="no file of the daemon"):
        Lock(tmp_path / "lock").take("a test")
    assert holder_of(tmp_path / "lock") is None
    assert target.read_text() == "another's"
    assert target.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "new").exists()


def test_who_holds_it_is_told_and_it_is_given_back(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    lock.take("a test")
    assert (holder_of(tmp_path / "lock") or {})["doing"] == "a test"
    lock.release()
    assert holder_of(tmp_path / "lock") is None
