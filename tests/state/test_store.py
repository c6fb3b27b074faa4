"""The state's files: drafts are worth nothing until they are renamed in, and what is dropped or broken is told apart."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.merges import writable

from mergd.state.archive import copy_source
from mergd.state.digests import digest_of_file
from mergd.state.errors import Damaged
from mergd.state.records import FileDigest, FileStamp
from mergd.state.store import BALLAST, Draft, Store, disk_bytes, replace_file, version_digest, write_file


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "state")
    store.create()
    return store


def digest_of(path: Path) -> dict[str, Any]:
    return {"name": path.name, "size": path.stat().st_size, "blake3": digest_of_file(path)}


def drafted(store: Store, number: int, value: float = 0.0) -> Draft:
    """Return a sealed draft with one slot and one published file."""
    draft = store.draft(number)
    slot, model = draft.slots / "slots-00001.safetensors", draft.model / "model.safetensors"
    save_file({"w": torch.full((3,), value)}, slot)
    save_file({"w": torch.full((3,), value + 1)}, model)
    slots = [{**digest_of(slot), "statistic": "S()", "slot": "sum"}]
    draft.seal({"version": number, "slots": slots, "model": [digest_of(model)]})
    return draft


def install(store: Store, *numbers: int) -> None:
    for number in numbers:
        store.install(drafted(store, number, float(number)), number)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def flip(path: Path, at: int = -1) -> None:
    """Change one byte of a file and not its size."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# -------------------------------------------------------------------------------------------------- drafts, installed


@pytest.fixture(params=[0o022, 0o077, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_models_are_for_all_and_everything_else_for_the_owner_whatever_the_umask(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "state")
    store.create()
    install(store, 1)
    assert [mode(path) for path in (store.root, store.models, store.model(1))] == [0o755] * 3
    assert [mode(path) for path in (store.versions, store.versions / "000001")] == [0o700] * 2
    assert mode(store.versions / "000001" / "manifest.json") == 0o400


@pytest.mark.usefixtures("umask")
def test_others_may_pass_to_the_model_of_a_draft_and_see_nothing_else_there(store: Store) -> None:
    store.drafts.chmod(0o700)  # as an older mergd made it
    draft = drafted(store, 1)
    assert [mode(path) for path in (store.drafts, draft.folder)] == [0o711] * 2
    assert (mode(draft.model), mode(draft.slots)) == (0o755, 0o700)
    source = store.root / "watch" / "a"
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    stamps = [FileStamp.of("config.json", (source / "config.json").stat())]
    assert list(copy_source(source, stamps, draft)) == [2]
    assert [mode(path) for path in (draft.source, draft.source / "a")] == [0o700] * 2


def test_to_create_again_changes_nothing(store: Store) -> None:
    install(store, 1)
    store.create()
    assert store.whole(1)


def test_a_draft_is_seen_by_nobody_until_it_is_installed(store: Store) -> None:
    draft = drafted(store, 1)
    assert list(store.versions.iterdir()) == list(store.models.iterdir()) == []
    store.install(draft, 1)
    assert store.whole(1)
    assert store.manifest(1)["version"] == 1
    assert not list(store.drafts.iterdir())


def test_a_draft_begins_empty_whatever_a_crash_left_there(store: Store) -> None:
    (store.draft(1).slots / "left").write_text("over")
    assert not list(store.draft(1).slots.iterdir())


def test_a_dropped_draft_leaves_nothing(store: Store) -> None:
    draft = drafted(store, 1)
    draft.drop()
    draft.drop()
    assert not list(store.drafts.iterdir())


def test_what_a_crash_left_in_a_versions_place_gives_way(store: Store) -> None:
    for folder in (store.versions / "000001", store.models / "000001"):
        folder.mkdir()
        (folder / "old").write_text("half of it")
    install(store, 1)
    assert store.whole(1)
    assert not (store.model(1) / "old").exists()
    assert not (store.versions / "000001" / "old").exists()


def test_a_manifest_is_the_same_bytes_for_the_same_version(store: Store) -> None:
    for number in (1, 2):
        draft = store.draft(number)
        draft.seal({"b": 1, "a": [2.5, None]} if number == 1 else {"a": [2.5, None], "b": 1})
        store.install(draft, number)
    texts = [(store.versions / f"{number:06d}" / "manifest.json").read_bytes() for number in (1, 2)]
    assert texts[0] == texts[1]
    assert json.loads(texts[0]) | {"sha256": ""} == {"a": [2.5, None], "b": 1, "digests": "blake3", "sha256": ""}


# --------------------------------------------------------------------------------------------------------- the link


def test_the_link_is_relative_and_moves_to_and_fro(store: Store) -> None:
    install(store, 1, 2)
    for number in (1, 2, 1):
        store.point(number)
        assert os.readlink(store.current) == f"{number:06d}"
        assert (store.current / "model.safetensors").exists()
    assert store.pointed() == 1


def test_whoever_reads_the_link_never_finds_it_missing(store: Store) -> None:
    install(store, 1, 2)
    store.point(1)
    done = threading.Event()

    def move() -> None:
        for k in range(200):
            store.point(1 + k % 2)
        done.set()

    thread = threading.Thread(target=move)
    thread.start()
    while not done.is_set():
        assert os.readlink(store.current) in ("000001", "000002")
        assert (store.current / "model.safetensors").is_file()
    thread.join()


def test_a_link_that_a_crash_left_aside_does_not_hinder(store: Store) -> None:
    install(store, 1)
    (store.models / ".current").symlink_to("nowhere")
    store.point(1)
    assert os.readlink(store.current) == "000001"


# ----------------------------------------------------------------------------------------------- swept and dropped


def test_sweeping_takes_what_has_no_version_and_leaves_the_rest(store: Store) -> None:
    install(store, 1, 2, 3)
    store.point(1)
    drafted(store, 4)
    (store.versions / "stray").write_text("")
    (store.models / "000009").symlink_to("000001")
    (store.models / ".current").symlink_to("000001")
    (store.drafts / "dropped-000000").mkdir()
    swept = store.sweep([1, 2], [1, 2], [1, 2])
    assert {Path(path).name for path in swept} == {
        "000003", "stray", "000009", ".current", "000004", "dropped-000000",
    }  # fmt: skip
    assert sorted(os.listdir(store.versions)) == ["000001", "000002"]
    assert sorted(os.listdir(store.models)) == ["000001", "000002", "current"]
    assert not os.listdir(store.drafts)
    assert store.whole(1)
    assert store.sweep([1, 2], [1, 2], [1, 2]) == []


def test_of_a_dropped_version_the_manifest_stays(store: Store) -> None:
    install(store, 1, 2)
    for _ in range(2):
        store.drop(1, "slots")
        store.drop(1, "model")
        assert os.listdir(store.versions / "000001") == ["manifest.json"]
        assert not store.model(1).exists()
    assert not store.whole(1)
    assert store.whole(2)
    assert not os.listdir(store.drafts)


def test_the_bytes_in_use_are_those_on_the_disk(store: Store) -> None:
    before = store.used([1, 2])
    install(store, 1)
    assert store.used([1, 2]) >= before + 3 * 4096
    store.drop(1, "slots")
    store.drop(1, "model")
    assert store.used([1, 2]) < before + 3 * 4096


def test_a_file_with_two_names_counts_once_and_is_freed_with_the_last(store: Store) -> None:
    install(store, 1, 2)
    before = store.used([1, 2])
    (model,) = store.model(1).glob("*.safetensors")
    twice = store.model(2) / "linked.safetensors"
    os.link(model, twice)
    assert store.used([1, 2]) == before
    one = disk_bytes([model])
    assert disk_bytes([model, twice]) == one > 0
    assert disk_bytes([model], alone=True) == disk_bytes([twice, twice.with_name("gone")], alone=True) == 0
    assert disk_bytes([model, twice], alone=True) == one
    assert store.takes(1) == disk_bytes([*store.files(1, "slots"), *store.files(1, "model")])
    store.drop(1, "model")
    assert store.files(1, "model") == []
    assert disk_bytes([twice], alone=True) == one


# ---------------------------------------------------------------------------------------------------------- damage


def test_every_file_that_is_not_as_it_was_written_is_named(store: Store) -> None:
    install(store, 1)
    assert store.damaged(1) == []
    flip(store.model(1) / "model.safetensors")
    assert store.whole(1)  # it looks at sizes alone
    assert store.damaged(1) == ["models/000001/model.safetensors"]
    (store.versions / "000001" / "slots-00001.safetensors").unlink()
    assert store.damaged(1) == ["versions/000001/slots-00001.safetensors", "models/000001/model.safetensors"]


def test_a_model_that_lacks_bytes_is_not_whole(store: Store) -> None:
    install(store, 1, 2)
    os.truncate(store.model(1) / "model.safetensors", 50)
    (store.model(2) / "model.safetensors").unlink()
    assert not store.whole(1)
    assert not store.whole(2)


def test_slots_are_read_only_where_they_are_whole(store: Store) -> None:
    install(store, 1)
    ((key, layout),) = store.slot_layouts(1).items()
    assert key == ("S()", "sum")
    assert list(layout.tensors) == ["w"]
    os.truncate(store.versions / "000001" / "slots-00001.safetensors", 50)
    with pytest.raises(Damaged, match="not as it was written"):
        store.slot_layouts(1)


def test_slots_whose_header_is_spoiled_are_damaged(store: Store) -> None:
    install(store, 1)
    flip(store.versions / "000001" / "slots-00001.safetensors", at=8)
    with pytest.raises(Damaged):
        store.slot_layouts(1)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff"])
def test_a_manifest_that_cannot_be_read_is_damaged(store: Store, data: bytes) -> None:
    install(store, 1)
    writable(store.versions / "000001" / "manifest.json").write_bytes(data)
    with pytest.raises(Damaged, match=r"manifest\.json"):
        store.manifest(1)


def test_a_manifest_that_is_gone_is_damaged(store: Store) -> None:
    with pytest.raises(Damaged, match="000007"):
        store.manifest(7)


# ------------------------------------------------------------------------------------------------------ small things


def test_a_versions_digest_covers_slots_and_weights_in_any_order() -> None:
    a, b, c = (FileDigest(name, 1, name * 64) for name in "abc")
    assert version_digest([a, b], [c]) == version_digest([b, a], [c])
    others = [version_digest([a], [b, c]), version_digest([a, b], []), version_digest([], [a, b, c])]
    others.append(version_digest([a, FileDigest("b", 2, "b" * 64)], [c]))
    assert len({version_digest([a, b], [c]), *others}) == 5


def test_a_small_file_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    digest = write_file(tmp_path / "a", b"abc", 0o640)
    assert (digest.name, digest.size, digest.blake3) == ("a", 3, digest_of_file(tmp_path / "a"))
    assert mode(tmp_path / "a") == 0o640
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a", b"other", 0o640)
    assert (tmp_path / "a").read_bytes() == b"abc"
    assert digest_of_file(tmp_path / "b") is None


def test_a_replaced_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def half(aside: Path) -> None:
        aside.write_text("ha")
        raise OSError(28, "no space left")

    with pytest.raises(OSError, match="no space"):
        replace_file(path, half)
    assert path.read_text() == "old"
    replace_file(path, lambda aside: aside.write_text("new"))
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


def test_the_ballast_is_held_once_released_and_held_again(store: Store) -> None:
    before = store.free()
    store.hold_ballast()
    store.hold_ballast()
    assert store.ballast.stat().st_blocks * 512 >= BALLAST
    assert store.free() == pytest.approx(before, abs=BALLAST // 2), "what it is to take was never free"
    assert store.release_ballast()
    assert not store.ballast.exists()
    assert not store.release_ballast()


def test_the_ballast_is_no_burden_where_there_is_no_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergd.state.store.BALLAST", 2**60)
    store.hold_ballast()
    assert not store.ballast.exists()
    assert store.free() == 0


def test_the_ballast_is_released_before_the_history_is_opened_if_nothing_else_is_free(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.hold_ballast()
    store.make_room()
    assert store.ballast.exists()
    monkeypatch.setattr("mergd.state.store.TIGHT", 2**60)
    store.make_room()
    assert not store.ballast.exists()


def test_what_was_renamed_in_is_taken_back(store: Store) -> None:
    draft = store.draft(1)
    store.install(draft, 1)
    again = store.draft(1)
    store.uninstall(again, 1)
    assert not list(store.versions.iterdir()) and not list(store.models.iterdir()) and not list(store.drafts.iterdir())
