"""Exporting a version's published model: whole or not at all, compared with its manifest, with the caller's rights."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import FORKING, Ended
from support.merges import Sandbox, make_merge, set_in
from support.models import load_model
from support.users import be_mergd

from mergd.daemon import exporting
from mergd.daemon.cards import WORDS
from mergd.daemon.exporting import export
from mergd.daemon.progress import Progress
from mergd.state.errors import Abandoned, Busy, Damaged, Unavailable

NOBODY, SOMEBODY = 65534, 54321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def folded(merge: Sandbox) -> Sandbox:
    """Two versions; the base model has files beside its weights, one of them deeper."""
    (merge.base / "tokenizer.json").write_text("{}")
    (merge.base / "more").mkdir()
    (merge.base / "more" / "notes.txt").write_text("x" * 10)
    for name, seed in (("a", 1), ("b", 2)):
        merge.drop(name, seed)
        merge.fold_all()
    return merge


@pytest.fixture
def target(folded: Sandbox) -> Path:
    """A folder of its own, for what is exported and nothing else."""
    (folded.root / "out").mkdir()
    return folded.root / "out" / "model"


def contents(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(("version", "number"), [("1", 1), ("v2", 2), ("head", 2), ("head~1", 1)])
def test_what_is_exported_is_what_was_published(folded: Sandbox, target: Path, version: str, number: int) -> None:
    ended = folded.mergd("export", version, target)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"v{number} is in {target}: 6 files")
    assert contents(target) == contents(folded.store.model(number))
    assert set(contents(target)) == {"config.json", "tokenizer.json", "more/notes.txt", "model.safetensors", *WORDS}
    assert os.listdir(target.parent) == ["model"]
    assert {name: tensor.shape for name, tensor in load_model(target).items()} == {
        name: tensor.shape for name, tensor in folded.model.items()
    }


def test_shards_and_their_index_are_exported_too(new_merge: Callable[..., Sandbox]) -> None:
    merge = new_merge("sharded", shard_size=500)
    merge.drop("a", 1)
    merge.fold_all()
    ended = merge.mergd("export", "head", merge.root / "model", "--json")
    assert ended.json["compared"]
    assert ended.json["files"] == len(contents(merge.root / "model")) > 3
    assert contents(merge.root / "model") == contents(merge.store.model(1))


def test_an_empty_folder_is_filled(folded: Sandbox, target: Path) -> None:
    target.mkdir()
    assert folded.mergd("export", "head", target).code == 0
    assert contents(target) == contents(folded.store.model(2))


def test_the_callers_umask_counts(folded: Sandbox, target: Path) -> None:
    before = os.umask(0o027)
    try:
        export(folded.settings, "head", target, Progress())
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == 0o750
    assert (target / "model.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("version", "place", "says"),
    [
        ("v9", "model", "no version"),
        ("head~2", "model", "before the first version"),
        ("head", "full", "is there already"),
        ("head", "full/file", "is there already"),
        ("head", "none/model", "no folder"),
        ("head", "../state/models/mine", "mergd's own"),
        ("head", "../watch/mine", "or watched"),
    ],
)
def test_a_wrong_version_or_target_is_told_and_nothing_is_left(
    folded: Sandbox, target: Path, version: str, place: str, says: str
) -> None:
    full = target.parent / "full"
    full.mkdir()
    (full / "file").write_text("mine")
    before = sorted(folded.root.rglob("*"))
    ended = folded.mergd("export", version, target.parent / place)
    assert (ended.code, len(ended.complaint)) == (2, 2)
    assert says in ended.err
    after = [path for path in folded.root.rglob("*") if ".output-" not in str(path)]
    assert sorted(after) == [path for path in before if ".output-" not in str(path)]
    assert (full / "file").read_text() == "mine"


def test_a_dropped_version_cannot_be_exported(folded: Sandbox, target: Path) -> None:
    set_in(folded.config, keep_last="1", keep_within='"0s"')
    for seed in (3, 4):
        folded.drop(f"c{seed}", seed)
        folded.fold_all()
    ended = folded.mergd("export", "v1", target)
    assert ended.code == 2
    assert "dropped by retention" in ended.err


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


SPOIL: dict[str, Callable[[Path], Any]] = {
    "a bit flipped": lambda model: flip(model / "model.safetensors"),
    "a side file": lambda model: flip(model / "more" / "notes.txt"),
    "cut": lambda model: os.truncate(model / "model.safetensors", 100),
    "grown": lambda model: os.truncate(model / "model.safetensors", 1 << 20),
    "gone": lambda model: (model / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("name", SPOIL)
def test_a_damaged_file_ends_it_and_nothing_is_left(folded: Sandbox, target: Path, name: str) -> None:
    SPOIL[name](folded.store.model(2))
    ended = folded.mergd("export", "head", target)
    assert (ended.code, len(ended.complaint)) == (Damaged.exit_code, 2)
    assert "is not as it was written" in ended.err
    assert os.listdir(target.parent) == []
    assert folded.mergd("export", "v1", target).code == 0


def test_a_version_that_retention_takes_meanwhile_is_busy(folded: Sandbox, target: Path) -> None:
    def drop(progress: Progress) -> None:
        shutil.rmtree(folded.store.model(2), ignore_errors=True)

    with pytest.raises(Busy, match="is gone"):
        export(folded.settings, "head", target, Progress(drop))
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), Abandoned(), OSError(28, "No space left on device"), OSError(5)]
)
@pytest.mark.parametrize("step", ["read", "sync_folder"])
def test_whatever_ends_it_nothing_is_left(
    folded: Sandbox, target: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str
) -> None:
    real: Callable[..., Any] = getattr(exporting, step)
    calls: list[object] = []

    def fail_at_the_second(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        return real(*arguments, **more)

    with monkeypatch.context() as patch, pytest.raises((type(error), Unavailable)):
        patch.setattr(exporting, step, fail_at_the_second)
        export(folded.settings, "head", target, Progress())
    assert os.listdir(target.parent) == []
    export(folded.settings, "head", target, Progress())
    assert contents(target) == contents(folded.store.model(2))


def test_without_room_nothing_is_begun(folded: Sandbox, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(target.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(Unavailable, match=r"100 B are free"):
        export(folded.settings, "head", target, Progress())
    assert os.listdir(target.parent) == []


def test_who_fills_the_target_meanwhile_keeps_it(folded: Sandbox, target: Path) -> None:
    def fill(progress: Progress) -> None:
        target.mkdir(exist_ok=True)
        (target / "mine").write_text("mine")

    with pytest.raises(Exception, match="not empty"):
        export(folded.settings, "head", target, Progress(fill))
    assert os.listdir(target.parent) == ["model"]
    assert os.listdir(target) == ["mine"]


# ------------------------------------------------------------------------------------------------------- other users


@pytest.fixture
def of_nobody() -> Iterator[Sandbox]:
    """Two versions in a state that belongs to somebody, where others can get at the published models."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        merge = make_merge(Path(folder) / "merge")
        for name, seed in (("a", 1), ("b", 2)):
            merge.drop(name, seed)
            merge.fold_all()
        for path in (merge.state, *merge.state.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        merge.config.chmod(0o644)
        yield merge


def mergd_as(uid: int, merge: Sandbox, *words: object) -> Ended:
    """Run a command as another user, in a folder of theirs."""
    place = merge.root.parent / f"of-{uid}"
    place.mkdir(exist_ok=True)
    os.chown(place, uid, uid)
    process = FORKING.Process(target=be_mergd, args=(uid, str(place), [*map(str, words), "-c", str(merge.config)]))
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return Ended(code, *((place / name).read_text() for name in ("out", "err")))


@as_root
@pytest.mark.parametrize(("version", "number"), [("1", 1), ("v2", 2), ("head", 2)])
def test_who_may_read_only_the_models_exports_them_uncompared(of_nobody: Sandbox, version: str, number: int) -> None:
    ended = mergd_as(SOMEBODY, of_nobody, "export", version, "mine")
    assert ended.code == 0, ended.err
    assert "were not compared with the manifest" in ended.out
    mine = of_nobody.root.parent / f"of-{SOMEBODY}" / "mine"
    assert contents(mine) == contents(of_nobody.store.model(number))
    assert {path.stat().st_uid for path in (mine, *mine.rglob("*"))} == {SOMEBODY}


@as_root
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["v9"], 2, "there are: v1, v2"),
        (["nonsense"], 2, "there are: v1, v2"),
        (["head~1"], 77, "give the version's number"),
        (["head", "--lora", "4"], 77, "may not read"),
    ],
)
def test_what_only_the_owner_knows_is_told_so(of_nobody: Sandbox, words: list[str], code: int, says: str) -> None:
    ended = mergd_as(SOMEBODY, of_nobody, "export", words[0], "mine", *words[1:])
    assert ended.code == code, ended.err
    assert says in ended.err
    assert sorted(os.listdir(of_nobody.root.parent / f"of-{SOMEBODY}")) == ["err", "out"]


@as_root
def test_a_folder_that_is_not_theirs_is_told_so(of_nobody: Sandbox) -> None:
    ended = mergd_as(SOMEBODY, of_nobody, "export", "head", of_nobody.root.parent / "mine")
    assert (ended.code, len(ended.complaint)) == (77, 2)


@as_root
@pytest.mark.parametrize("words", [(), ("--lora", "2")])
def test_root_exports_as_root_and_changes_nothing_in_the_state(of_nobody: Sandbox, words: tuple[str, ...]) -> None:
    place = of_nobody.root.parent / "roots"
    place.mkdir(mode=0o700)
    ended = of_nobody.mergd("export", "head", place / "model", *words)
    assert ended.code == 0, ended.err
    assert {path.stat().st_uid for path in (place / "model").rglob("*")} == {0}
    assert {path.lstat().st_uid for path in of_nobody.state.rglob("*")} == {NOBODY}


def test_progress_is_told(folded: Sandbox, target: Path) -> None:
    seen: list[str] = []
    export(folded.settings, "head", target, Progress(lambda progress: seen.append(str(progress))))
    assert seen[-1].startswith("exporting ")
