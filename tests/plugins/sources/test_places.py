"""Which places are seen: trainers' runs at both depths, the Hub client's cache, links; and how they are called."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import save_lone, save_model, tiny_base

from mergd.plugins.sources.directory import Directory
from mergd.plugins.sources.directory.evidence import gather
from mergd.state.records import Sighting


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "watch").mkdir()
    return tmp_path / "watch"


def seen(root: Path) -> list[Sighting]:
    """Return what a scan sees; looked at one by one, each place is seen alike."""
    source = Directory(root)
    sightings = list(source.scan().sightings)
    assert [source.sight(Path(sighting.place)) for sighting in sightings] == sightings
    return sightings


def names(root: Path) -> list[str]:
    return [sighting.name for sighting in seen(root)]


def save_step(run: Path, step: int, mark: str = "trainer_state.json") -> Path:
    """Write what a trainer saves at one step."""
    place = save_model(run / f"checkpoint-{step}", tiny_base())
    (place / mark).write_text("{}")
    return place


def test_the_steps_of_a_run_are_places_in_the_order_of_their_numbers(root: Path) -> None:
    run = root / "alpha"
    for step in (1000, 500, 1500):
        save_step(run, step)
    save_model(root / "alone", tiny_base())
    assert names(root) == ["alone", "alpha/checkpoint-500", "alpha/checkpoint-1000", "alpha/checkpoint-1500"]
    assert [(s.run, s.step) for s in seen(root)] == [("", None), *((str(run), step) for step in (500, 1000, 1500))]


def test_a_final_model_makes_the_run_itself_a_place(root: Path) -> None:
    save_step(root / "alpha", 500)
    save_model(root / "alpha", tiny_base())
    assert [(s.name, s.run, s.step) for s in seen(root)] == [
        ("alpha", str(root / "alpha"), None),
        ("alpha/checkpoint-500", str(root / "alpha"), 500),
    ]


def test_the_watched_folder_may_be_the_run_itself(root: Path) -> None:
    save_step(root, 500)
    save_step(root, 1000)
    save_lone(root / "model.safetensors", tiny_base())
    save_lone(root / "other.safetensors", tiny_base())
    assert [(s.name, s.run, s.step) for s in seen(root)] == [
        ("checkpoint-500", str(root), 500),
        ("checkpoint-1000", str(root), 1000),
        ("model.safetensors", str(root), None),
        ("other.safetensors", "", None),
    ]


@pytest.mark.parametrize("mark", ["trainer_state.json", "optimizer.pt", "training_args.bin"])
def test_a_step_is_known_by_its_name_and_any_file_of_a_trainer(root: Path, mark: str) -> None:
    save_step(root / "alpha", 5, mark)
    assert [s.step for s in seen(root)] == [5]


@pytest.mark.parametrize("name", ["checkpoint-5", "checkpoint-x", "step-5", "checkpoint-5-old", "checkpoint-\u0665"])
def test_a_name_or_a_file_alone_makes_no_run(root: Path, name: str) -> None:
    place = save_model(root / name, tiny_base())
    if name != "checkpoint-5":
        (place / "trainer_state.json").write_text("{}")
    assert [(s.name, s.run, s.step) for s in seen(root)] == [(name, "", None)]


def test_what_a_trainer_still_writes_is_not_seen(root: Path) -> None:
    save_step(root / "alpha", 5)
    save_model(root / "alpha" / "tmp-checkpoint-6", tiny_base())
    save_model(root / "tmp-checkpoint-7", tiny_base())
    assert names(root) == ["alpha/checkpoint-5"]


def test_each_snapshot_of_a_cached_repository_is_a_place(root: Path) -> None:
    cache = root / "models--org--name"
    commits = ["a" * 40, "b" * 40]
    for commit in commits:
        blob = save_lone(make(cache / "blobs") / commit, tiny_base())
        make(cache / "snapshots" / commit)
        (cache / "snapshots" / commit / "model.safetensors").symlink_to(
            os.path.relpath(blob, cache / "snapshots" / "x")
        )
    (make(cache / "refs") / "main").write_text(commits[0])
    assert names(root) == ["org/name@aaaaaaa", "org/name@bbbbbbb"]
    assert all(sighting.stamps[0].size > 100 for sighting in seen(root))


def test_an_empty_repository_of_the_cache_is_a_folder_like_others(root: Path) -> None:
    make(root / "models--org--name")
    assert names(root) == ["models--org--name"]


def test_a_link_is_a_place_and_another_one_when_it_leads_elsewhere(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_model(tmp_path / name, tiny_base())
    (root / "link").symlink_to(tmp_path / "one")
    (before,) = seen(root)
    (root / "link").unlink()
    (root / "link").symlink_to(tmp_path / "two")
    (after,) = seen(root)
    assert (before.name, before.place) == (after.name, after.place) == ("link", str(root / "link"))
    assert before.fingerprint != after.fingerprint


def test_a_link_may_lead_to_a_run(root: Path, tmp_path: Path) -> None:
    save_step(tmp_path / "elsewhere", 5)
    (root / "beta").symlink_to(tmp_path / "elsewhere")
    assert [(s.name, s.run, s.step) for s in seen(root)] == [("beta/checkpoint-5", str(root / "beta"), 5)]


@pytest.mark.parametrize("name", [b"x\xff.safetensors", b"x\xff.bin", b"x\xff-00001-of-00002.safetensors"])
def test_a_name_inside_a_folder_that_is_no_text_is_passed_over(root: Path, name: bytes) -> None:
    place = save_model(root / "a", tiny_base())
    before = seen(root)
    Path(os.fsdecode(os.fsencode(place) + b"/" + name)).touch()
    assert seen(root) == before
    assert before[0].fingerprint.encode()


@pytest.mark.parametrize("mode", ["may not be listed", "may not be entered"])
def test_a_step_that_we_may_not_enter_is_seen_without_files(
    root: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    closed = save_step(root / "alpha", 500)
    save_model(root / "good", tiny_base())
    for name in ("listdir", "scandir") if mode == "may not be listed" else ("listdir", "scandir", "stat", "open"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), closed, itself=name in ("listdir", "scandir")))
    sightings = seen(root)
    assert [(s.name, len(s.stamps)) for s in sightings] == [("alpha/checkpoint-500", 0), ("good", 2)]
    assert gather(sightings[0]).unreadable == str(closed)


def refusing(call: Callable[..., Any], folder: Path, *, itself: bool) -> Callable[..., Any]:
    """Return a system call to which what lies in a folder is closed."""

    def asked(path: Any, *arguments: Any, **options: Any) -> Any:
        if folder in Path(path).parents or (itself and Path(path) == folder):
            raise PermissionError(13, "Permission denied", str(path))
        return call(path, *arguments, **options)

    return asked


@pytest.mark.parametrize(("number", "is_seen"), [
    (errno.EIO, True), (errno.ESTALE, True), (errno.ENOENT, False), (errno.ELOOP, False),
])  # fmt: skip
def test_what_the_disk_does_not_tell_of_is_not_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_seen: bool
) -> None:
    place, real = save_lone(root / "a.safetensors", tiny_base()), os.stat
    save_lone(root / "b.safetensors", tiny_base())

    def stat(path: Any, **options: Any) -> os.stat_result:
        if str(path) == str(place):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert names(root) == (["a.safetensors"] if is_seen else []) + ["b.safetensors"]


def make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
