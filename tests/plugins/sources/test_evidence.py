"""What a closer look at a place finds: writers, holes, copies in progress, markers, manifests, and what may not be read."""

import errno
import fcntl
import hashlib
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import save_lone, save_model, tiny_base

from mergd.plugins.sources.directory import Directory, evidence, manifests
from mergd.plugins.sources.directory.evidence import gather
from mergd.plugins.sources.interface import Evidence
from mergd.state.errors import Unavailable
from mergd.state.headers import read_bounded

FILE = "model.safetensors"
AA, BB = "a" * 64, "b" * 64


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return save_model(tmp_path / "watch" / "a", tiny_base())


def look(place: Path) -> Evidence:
    sighting = Directory(place.parent).sight(place)
    assert sighting is not None
    return gather(sighting)


def test_of_what_is_complete_there_is_nothing_to_say(place: Path) -> None:
    assert look(place) == Evidence()
    assert look(save_lone(place.parent / "b.safetensors", tiny_base())) == Evidence()


# ------------------------------------------------------------------------------------------------------------ writers


@pytest.mark.parametrize("mode", ["ab", "r+b", "wb"])
def test_somebody_has_it_open_for_writing(place: Path, mode: str) -> None:
    with (place / FILE).open(mode):
        assert look(place).writers == (FILE,)
    assert look(place).writers == ()


def test_somebody_has_it_mapped_for_writing(place: Path) -> None:
    fd = os.open(place / FILE, os.O_RDWR)
    mapped = mmap.mmap(fd, 0)
    os.close(fd)
    assert look(place).writers == (FILE,)
    mapped.close()
    assert look(place).writers == ()


def test_those_who_read_it_are_no_writers(place: Path) -> None:
    with (place / FILE).open("rb"):
        assert look(place) == Evidence()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_the_kernel_does_not_say_who_writes_nobody_is_known(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuses(fd: int, command: int, argument: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", refuses)
    assert look(place) == Evidence(unasked=(FILE,))


def test_a_writer_is_never_kept_waiting_and_nobody_is_killed_by_a_signal(place: Path) -> None:
    """Others open the file for writing all the time, while it is looked at thousands of times."""
    script = f"import os\nfor _ in range(5_000_000): os.close(os.open({str(place / FILE)!r}, os.O_WRONLY))"
    writer = subprocess.Popen([sys.executable, "-S", "-c", script])  # it ends by itself, should a signal end this test
    try:
        found, until = set(), time.monotonic() + 1.0
        while time.monotonic() < until:
            found.add(look(place).writers)
        assert writer.poll() is None
        os.close(os.open(place / FILE, os.O_WRONLY | os.O_NONBLOCK))  # no lease is left
    finally:
        writer.kill()
        writer.wait()
    assert () in found
    assert signal.getsignal(signal.SIGIO) is signal.SIG_DFL  # which ends a process: it was none of ours


# -------------------------------------------------------------------------------------------------------------- holes


def test_an_allocated_file_has_holes_until_it_is_filled(place: Path) -> None:
    data = os.urandom(1_000_000)
    with (place / FILE).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, len(data))
        file.write(data[:300_000])
        file.flush()
        os.fsync(file.fileno())
        assert look(place).holes == (FILE,)
        file.write(data[300_000:])
        file.flush()
        os.fsync(file.fileno())
    assert look(place).holes == ()


def test_a_sparse_file_has_holes(place: Path) -> None:
    with (place / FILE).open("wb") as file:
        file.write(b"x" * 5000)
        file.truncate(1_000_000)
    assert look(place).holes == (FILE,)


# ---------------------------------------------------------------------------------------------------- copies, markers


@pytest.mark.parametrize("name", [
    "x.tmp", f"{FILE}.part", "x.incomplete", f".{FILE}.Xy12", ".~tmp~", f"{FILE}.aria2",
    ".cache/huggingface/download/x.incomplete",
])  # fmt: skip
def test_a_copy_in_progress_leaves_a_name(place: Path, name: str) -> None:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).touch()
    assert look(place).unfinished == Path(name).name
    (place / name).unlink()
    assert look(place).unfinished == ""


def test_a_copy_in_progress_of_a_lone_file(tmp_path: Path) -> None:
    place = save_lone(tmp_path / "a.safetensors", tiny_base())
    for end in (".aria2", ".part", ".crdownload"):
        beside = tmp_path / f"a.safetensors{end}"
        beside.touch()
        assert look(place).unfinished == beside.name
        beside.unlink()
    assert look(place) == Evidence()


def test_a_download_into_the_hub_clients_cache(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot = save_model(cache / "snapshots" / ("a" * 40), tiny_base())
    assert look(snapshot) == Evidence()
    (cache / "blobs").mkdir()
    (cache / "blobs" / "x.incomplete").touch()
    (tmp_path / "link").symlink_to(snapshot)
    assert look(snapshot).unfinished == look(tmp_path / "link").unfinished == "x.incomplete"


@pytest.mark.parametrize("marker", ["READY", ".mergd-ready"])
def test_a_marker_counts_as_long_as_nothing_is_changed_after_it(place: Path, marker: str) -> None:
    (place / marker).touch()
    later_than(place / FILE, place / marker)
    assert look(place).marker == marker
    later_than(place / marker, place / "config.json")
    assert look(place).marker == ""
    later_than(place / "config.json", place / marker)
    assert look(place).marker == marker
    os.utime(place / marker, ns=(0, 0))  # what a user can set does not count
    assert look(place).marker == marker


def test_a_marker_that_came_first_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "READY").touch()
    place = save_model(tmp_path / "a", tiny_base())
    later_than(place / "READY", place / FILE)
    assert look(place).marker == ""


def test_a_lone_file_has_a_marker_of_its_own(tmp_path: Path) -> None:
    place = save_lone(tmp_path / "a.safetensors", tiny_base())
    (tmp_path / "READY").touch()
    assert look(place).marker == ""
    marker = tmp_path / "a.safetensors.ready"
    marker.touch()
    later_than(place, marker)
    assert look(place).marker == marker.name


def test_a_marker_counts_where_its_time_is_that_of_the_other_files(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the clocks of most file systems have it, for what is written within some milliseconds."""
    (place / "READY").touch()
    monkeypatch.setattr(evidence, "_changed", lambda path: 7 if path.exists() else None)
    assert look(place).marker == "READY"
    lone = save_lone(place.parent / "a.safetensors", tiny_base())
    assert look(lone).marker == ""
    lone.with_name("a.safetensors.ready").touch()
    assert look(lone).marker == "a.safetensors.ready"


def later_than(before: Path, path: Path) -> None:
    """Touch a file until its time is a later one than another's: the kernel's clock has ticks."""
    while path.stat().st_ctime_ns <= before.stat().st_ctime_ns:
        path.touch()


# ---------------------------------------------------------------------------------------------------------- manifests


def test_what_sha256sum_prints_is_read(place: Path) -> None:
    for flags in ([], ["--binary"], ["--tag"]):
        done = subprocess.run(
            ["sha256sum", *flags, *sorted(os.listdir(place))], cwd=place, capture_output=True, check=False
        )
        (place / "SHA256SUMS").write_bytes(done.stdout)
        found = look(place)
        assert found.manifest == "SHA256SUMS"
        assert found.digests == {FILE: hashlib.sha256((place / FILE).read_bytes()).hexdigest()}


SUMS = {
    f"{AA}  {FILE}\n": {FILE: AA},
    f"{AA} *{FILE}\r\n": {FILE: AA},
    f"{AA}  ./{FILE}": {FILE: AA},
    f"SHA256 ({FILE}) = {AA}\n": {FILE: AA},
    f"{AA.upper()}  {FILE}\n": {FILE: AA},
    f"{AA}  a.safetensors\n{BB}  b.safetensors\n": {"a.safetensors": AA, "b.safetensors": BB},
    f"{AA}  config.json\n{BB}  sub/{FILE}\n": {},
    f"{AA[:-1]}  {FILE}\n": {},
    "": {},
    "garbage\n\0": {},
}


@pytest.mark.parametrize("text", SUMS)
def test_the_lines_of_a_manifest(text: str) -> None:
    assert manifests.sha256sums(text) == SUMS[text]


def test_a_lone_file_has_a_manifest_of_its_own(tmp_path: Path) -> None:
    place = save_lone(tmp_path / "a.safetensors", tiny_base())
    (tmp_path / "a.safetensors.sha256").write_text(f"{AA}  a.safetensors\n{BB}  b.safetensors\n")
    assert (look(place).manifest, look(place).digests) == ("a.safetensors.sha256", {"a.safetensors": AA})


def write_tree(place: Path, commit: str, files: dict[str, dict[str, object]]) -> Path:
    """Write what the Hub client notes of a repository's files."""
    tree = place / ".cache" / "huggingface" / "trees" / f"{commit}.json"
    tree.parent.mkdir(parents=True, exist_ok=True)
    tree.write_text(json.dumps({"format_version": 1, "files": files}))
    return tree


def test_the_hub_clients_own_list_is_a_manifest_of_what_is_there(place: Path) -> None:
    entry = {"size": 1, "blob_id": "x", "lfs_size": 1}
    first = write_tree(place, "1" * 40, {FILE: entry | {"lfs_sha256": BB}})
    os.utime(first, ns=(0, 0))
    second = write_tree(place, "2" * 40, {
        FILE: entry | {"lfs_sha256": AA}, "consolidated.safetensors": entry | {"lfs_sha256": BB},
        "onnx/model.safetensors": entry | {"lfs_sha256": BB}, "config.json": {"size": 1, "blob_id": "x"},
    })  # fmt: skip
    assert look(place).digests == {FILE: AA}
    assert look(place).manifest == str(second.relative_to(place))


NO_MANIFESTS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a large file": lambda path: path.write_text(f"{AA}  {FILE}\n" + " " * manifests.LARGEST),
    "a long list": lambda path: path.write_text("".join(f"{AA}  {k}.safetensors\n" for k in range(5000))),
}


@pytest.mark.parametrize("what", NO_MANIFESTS)
@pytest.mark.parametrize("name", ["SHA256SUMS", ".cache/huggingface/trees/x.json"])
def test_what_can_be_no_manifest_says_nothing(place: Path, name: str, what: str) -> None:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    NO_MANIFESTS[what](place / name)
    assert look(place) == Evidence()


def test_a_manifest_that_becomes_a_pipe_keeps_nobody_waiting(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums, real = place / "SHA256SUMS", os.open
    sums.write_text("x")

    def swapped(path: str | Path, flags: int, *mode: int, **options: int) -> int:
        if str(path) == str(sums):
            sums.unlink()
            os.mkfifo(sums)
            assert flags & os.O_NONBLOCK
        return real(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", swapped)
    assert look(place) == Evidence()


def test_a_manifest_is_read_once_for_as_long_as_it_is_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noting(path: str, most: int) -> bytes:
        read.append(path)
        return read_bounded(path, most)

    monkeypatch.setattr(manifests, "read_bounded", noting)
    sums, tree = place / "SHA256SUMS", write_tree(place, "1" * 40, {FILE: {"lfs_sha256": BB}})
    assert [look(place).digests for _ in range(3)] == [{FILE: BB}] * 3
    sums.write_text(f"{AA}  {FILE}\n")
    assert [look(place).digests for _ in range(3)] == [{FILE: AA}] * 3
    sums.write_text(f"{BB} *./{FILE}\n")
    assert look(place).digests == {FILE: BB}
    assert read == [str(tree), str(sums), str(sums)]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 7}', '{"files": {"a.safetensors": 7}}', "[" * 10_000])
def test_a_list_that_is_none_says_nothing(place: Path, text: str) -> None:
    write_tree(place, "1" * 40, {}).write_text(text)
    assert look(place) == Evidence()


def test_the_hub_client_writes_such_a_list() -> None:
    from huggingface_hub import _tree_cache as client

    entry = client.TreeCacheEntry(1, "x", lfs_sha256=AA, lfs_size=1)
    text = json.dumps({"format_version": client.TREE_CACHE_FORMAT_VERSION, "files": {FILE: entry.to_json()}})
    assert manifests.hub_tree(text) == {FILE: AA}


# --------------------------------------------------------------------------------------------------- what went wrong


def test_what_may_not_be_read_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_permitted(path: Path, *arguments: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", not_permitted)
    assert look(place) == Evidence(unreadable=str(place / FILE))


def test_a_manifest_that_may_not_be_read_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums, real = place / "SHA256SUMS", os.open
    sums.write_text(f"{AA}  {FILE}\n")

    def not_permitted(path: str | Path, *arguments: int) -> int:
        if str(path) == str(sums):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", not_permitted)
    assert look(place) == Evidence(unreadable=str(sums))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ELOOP])
@pytest.mark.parametrize("name", ["listdir", "stat"])
def test_a_disk_that_does_not_answer_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    sighting = Directory(place.parent).sight(place)
    assert sighting is not None

    def fails(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fails)
        if (name, number) == ("stat", errno.ELOOP):  # as of a link that leads round in a circle
            assert gather(sighting) == Evidence()
        else:
            with pytest.raises(Unavailable, match=os.strerror(number)):
                gather(sighting)


def test_what_went_away_meanwhile_is_no_error(place: Path) -> None:
    sighting = Directory(place.parent).sight(place)
    assert sighting is not None
    (place / FILE).unlink()
    assert gather(sighting) == Evidence()
    place.rename(place.with_name("moved"))
    assert gather(sighting) == Evidence()
