"""The directory source, held to the contract of sources; what it sees, and what wakes it."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from contracts.source import PATIENCE, SourceContract
from support.models import fine_tuned, save_lone, save_model, tiny_base

from mergd.plugins.sources.directory import Directory, places
from mergd.plugins.sources.interface import Source
from mergd.state.records import Sighting


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "watch").mkdir()
    return tmp_path / "watch"


class TestDirectory(SourceContract):
    root: Path

    @pytest.fixture
    def source(self, root: Path) -> Iterator[Source]:
        self.root = root
        source = Directory(root)
        yield source
        source.close()

    def put(self, name: str, seed: int) -> Path:
        return save_model(self.root / name, fine_tuned(tiny_base(), seed))

    def take_away(self, name: str) -> None:
        shutil.rmtree(self.root / name)

    def break_off(self) -> None:
        shutil.rmtree(self.root)

    def mend(self) -> None:
        self.root.mkdir()


@pytest.fixture
def directory(root: Path) -> Iterator[Directory]:
    directory = Directory(root)
    yield directory
    directory.close()


def names(directory: Directory) -> list[str]:
    return [sighting.name for sighting in directory.scan().sightings]


def test_folders_and_lone_files_are_seen_and_nothing_else(directory: Directory) -> None:
    save_model(directory.root / "folder", tiny_base())
    save_lone(directory.root / "lone.safetensors", tiny_base())
    (directory.root / "empty").mkdir()
    for name in ("notes.txt", ".hidden.safetensors", "x.safetensors.part", "optimizer.pt"):
        (directory.root / name).touch()
    os.mkfifo(directory.root / "pipe")
    assert names(directory) == ["empty", "folder", "lone.safetensors"]


def test_only_what_could_belong_to_a_checkpoint_is_in_its_fingerprint(directory: Directory) -> None:
    place = save_model(directory.root / "a", tiny_base())
    before = directory.sight(place)
    for name in ("trainer_state.json", "optimizer.pt", "README.md", "events.out.tfevents"):
        (place / name).write_text("x")
    (place / "runs").mkdir()
    assert directory.sight(place) == before
    save_lone(place / "model-00001-of-00002.safetensors", tiny_base())
    assert directory.sight(place) != before


def test_the_same_bytes_written_again_are_another_sighting(directory: Directory) -> None:
    place = save_lone(directory.root / "a.safetensors", tiny_base())
    before = directory.sight(place)
    save_lone(directory.root / "aside", tiny_base()).rename(place)
    assert directory.sight(place) != before


def test_a_link_to_a_checkpoint_is_seen_and_a_broken_one_is_not(directory: Directory, tmp_path: Path) -> None:
    save_model(tmp_path / "elsewhere", tiny_base())
    (directory.root / "link").symlink_to(tmp_path / "elsewhere")
    (directory.root / "broken").symlink_to("nowhere")
    (directory.root / "broken.safetensors").symlink_to("nowhere")
    assert names(directory) == ["link"]


def test_a_thousand_files_that_come_and_go_disturb_no_scan(directory: Directory) -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for k in range(20):
                (directory.root / f"{k}").mkdir(exist_ok=True)
                (directory.root / f"{k}.safetensors").touch()
            for k in range(20):
                (directory.root / f"{k}").rmdir()
                (directory.root / f"{k}.safetensors").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(200):
            assert all(sighting.name for sighting in directory.scan().sightings)
    finally:
        stop.set()
        thread.join()


def test_an_error_that_nobody_foresaw_at_one_place_hides_no_other(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bad", "good"):
        save_model(directory.root / name, tiny_base())
    real = places.sight

    def sight(source: str, root: Path, place: Path) -> Sighting | None:
        if place.name == "bad":
            raise ArithmeticError("a test")
        return real(source, root, place)

    monkeypatch.setattr(places, "sight", sight)
    for _ in range(2):
        assert [(s.name, len(s.stamps)) for s in directory.scan().sightings] == [("bad", 0), ("good", 2)]
    assert caplog.text.count("could not be sighted") == 1


def test_a_name_that_is_no_text_is_told_of_once(directory: Directory, caplog: pytest.LogCaptureFixture) -> None:
    Path(os.fsdecode(os.fsencode(directory.root) + b"/told of once \xff")).mkdir()
    for _ in range(3):
        assert names(directory) == []
    assert caplog.text.count("is passed over") == 1


@pytest.mark.parametrize("how", ["in a new folder", "renamed in", "a lone file", "in an old folder"])
def test_whatever_the_way_in_the_scan_is_woken(directory: Directory, tmp_path: Path, how: str) -> None:
    (directory.root / "old").mkdir()
    save_model(tmp_path / "aside", tiny_base())
    woken = threading.Event()
    directory.watch(woken.set)
    match how:
        case "in a new folder":
            save_model(directory.root / "new", tiny_base())
        case "renamed in":
            (tmp_path / "aside").rename(directory.root / "new")
        case "a lone file":
            save_lone(directory.root / "lone.safetensors", tiny_base())
        case _:
            save_lone(directory.root / "old" / "model.safetensors", tiny_base())
    assert woken.wait(PATIENCE)


def test_our_own_reading_wakes_nobody(directory: Directory) -> None:
    place = save_model(directory.root / "a", tiny_base())
    woken = threading.Event()
    directory.watch(woken.set)
    for _ in range(3):
        (place / "model.safetensors").read_bytes()
        directory.scan()
    assert not woken.wait(0.3)
