"""One flipped bit in each kept file: it is found, it is never knowingly served, nothing is folded onto it."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from rot.flips import SEEDS, files_of, flip, flips, three_versions, verified
from support.commands import eventually
from support.merges import NO_LIMITS, Sandbox, make_merge, set_in

from mergd.daemon.auditing import audit
from mergd.daemon.requests import Rollback, rollback
from mergd.state.errors import Damaged
from mergd.state.history import History


@pytest.fixture
def folded(tmp_path: Path) -> Sandbox:
    """Three versions with every kind of file."""
    return three_versions(tmp_path)


def some_bit(path: Path) -> int:
    """Return a bit of a file, the same each time."""
    return random.Random(str(path.relative_to(path.parents[2]))).randrange(8 * path.stat().st_size)


def spoil(path: Path) -> str:
    """Flip one bit of a file; returns its name within the state."""
    flip(path, some_bit(path))
    return str(path.relative_to(path.parents[2]))


def the_first(merge: Sandbox, version: int, pattern: str) -> Path:
    return next(path for path in files_of(merge, version) if path.match(pattern))


def scrubbed(merge: Sandbox) -> None:
    """Have a loop read what is due, and do what follows."""
    with merge.loop() as loop:
        loop.post("scrub")
        loop.run(until=loop.idle)


def paused(merge: Sandbox) -> str:
    with History(merge.store.database) as history:
        why = history.paused()
    return str(why["why"]) if why else ""


# ------------------------------------------------------------------------------------------------------------ verify


def test_verify_finds_one_flipped_bit_in_each_file_of_each_version(folded: Sandbox) -> None:
    kinds = {path.name for path in files_of(folded)}
    assert kinds >= {"slots-00001.safetensors", "slots-00002.safetensors", "manifest.json", "config.json"}
    assert kinds >= {"model.safetensors.index.json", "tokenizer.json"}
    assert len(files_of(folded)) > 3 * 8
    assert verified(folded) == []
    for path in files_of(folded):
        bit = some_bit(path)
        flip(path, bit)
        name = str(path.relative_to(folded.state))
        assert name in verified(folded), (name, bit)
        version = folded.versions()[int(path.parent.name) - 1]
        assert version.damaged == name
        assert not version.kept
        flip(path, bit)
        assert verified(folded) == []
        assert all(version.kept for version in folded.versions())


def test_every_bit_of_a_manifest_counts(folded: Sandbox) -> None:
    path = the_first(folded, 2, "manifest.json")
    for bit in random.Random(1).sample(range(8 * path.stat().st_size), 300):
        flip(path, bit)
        with pytest.raises(Damaged):
            folded.store.manifest(2)
        flip(path, bit)
    assert folded.store.manifest(2)["version"] == 2


def test_verify_says_which_version_is_sound_and_records_what_is_not(folded: Sandbox) -> None:
    spoil(the_first(folded, 3, "model-*"))
    ended = folded.mergd("verify")
    assert ended.code == 74
    assert "mergd rollback v2" in ended.err
    spoil(the_first(folded, 2, "slots-*"))
    assert folded.mergd("verify", "v2").code == 74
    answer = folded.mergd("verify", "v1", "--json")
    assert (answer.code, answer.json["sound"], answer.json["read"], answer.json["nearest"]) == (0, True, [1], 1)
    refused = folded.mergd("rollback", "v2")
    assert refused.code == 74
    assert "v2 is damaged" in refused.err
    assert "mergd rollback v1" in refused.err
    assert folded.mergd("rollback", "v1").code == 0


def test_what_the_database_and_the_folders_do_not_agree_on_is_said(folded: Sandbox) -> None:
    (folded.store.versions / "000009").mkdir()
    (folded.store.model(2) / "left.txt").write_text("by whom?")
    the_first(folded, 1, "tokenizer.json").unlink()
    os.truncate(the_first(folded, 1, "slots-*"), 100)
    folded.store.point(1)
    ended = folded.mergd("verify", "--json")
    found = {fault["what"]: fault["found"] for fault in ended.json["faults"]}
    assert found["versions/000009"].startswith("is in no row")
    assert found["models/000002/left.txt"] == "is in no manifest"
    assert found["models/000001/tokenizer.json"] == "is gone"
    assert found["versions/000001/slots-00001.safetensors"].startswith("has 100 bytes")
    assert found["models/current"] == "leads to v1, and the head is v3"
    assert ended.code == 74


def test_what_only_lies_there_is_no_damage(folded: Sandbox) -> None:
    (folded.store.versions / "000009").mkdir()
    ended = folded.mergd("verify")
    assert ended.code == 0
    assert "note: versions/000009" in ended.out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("update versions set readout_norm = readout_norm * 2 where number = 2", "totals"),
        ("update versions set parent = 1 where number = 3", "parent"),
        ("update versions set scale = -scale where number = 2", "scale"),
        ("update versions set digest = 'f' || digest where number = 2", "digest"),
        ("update checkpoints set digest = 'f' || digest where id = 2", "checkpoint"),
        ("update contributions set norm = norm * 2 where version = 2", "contribution"),
        ("update moves set from_version = 77 where id = 2", "leads to no row of versions"),
    ],
)
def test_a_row_that_is_not_as_its_manifest_says_is_found(folded: Sandbox, change: str, says: str) -> None:
    with closing(sqlite3.connect(folded.store.database, isolation_level=None)) as db:
        db.execute(change)
    with History(folded.store.database) as history:
        faults = audit(history, folded.store, history.versions())
    assert [fault for fault in faults if says in fault.found and fault.damage]


# ------------------------------------------------------------------------------------------------- scrub and containment


SERVED = ("model-00002*", "config.json", "model.safetensors.index.json", "tokenizer.json")


@pytest.mark.parametrize("pattern", SERVED)
def test_a_head_whose_model_is_damaged_gives_way_to_the_nearest_sound_version(
    folded: Sandbox, their_news: Path, pattern: str
) -> None:
    set_in(folded.config, scrub='"1ms"', hooks='["their_hook"]')
    spoil(the_first(folded, 2, "model-00001*"))
    name = spoil(the_first(folded, 3, pattern))
    scrubbed(folded)
    assert folded.store.pointed() == 1  # the nearest was damaged too, which was found before it was served
    versions = folded.versions()
    assert [version.kept for version in versions] == [True, False, False]
    assert versions[2].damaged == name
    assert versions[0].checked_at is not None
    with History(folded.store.database) as history:
        move = history.moves(1)[0]
        assert (move.from_version, move.to_version, move.who, move.why) == (3, 1, "mergd", "damage")
        assert history.owed() == []
    assert json.loads(their_news.read_text().splitlines()[-1])["version"] == 1
    why = paused(folded)
    assert name in why
    assert "folded since: b, c" in why
    assert f"mergd fold --again {folded.watch / 'b'} {folded.watch / 'c'}" in why


@pytest.mark.parametrize("pattern", ["slots-00001*", "slots-00002*", "manifest.json"])
def test_a_head_whose_slots_are_damaged_is_served_and_not_folded_onto(folded: Sandbox, pattern: str) -> None:
    set_in(folded.config, scrub='"1ms"')
    name = spoil(the_first(folded, 3, pattern))
    scrubbed(folded)
    folded.drop("d", 4)
    assert folded.mergd("run", "--once").code == 74
    assert folded.states()["d"] == "ready"
    assert folded.store.pointed() == 3
    assert name in paused(folded)
    assert folded.mergd("resume").code == 0  # whoever says so without mending it is told again
    ended = folded.mergd("run", "--once")
    assert ended.code == 74
    assert "mergd rollback v2; mergd resume" in ended.err
    for command in (["rollback", "v2"], ["resume"], ["run", "--once"]):
        assert folded.mergd(*command).code == 0
    assert folded.states()["d"] == "folded"
    assert folded.versions()[-1].parent == 2


def test_scrubbing_finds_one_flipped_bit_in_each_file_of_a_version_that_is_not_the_head(folded: Sandbox) -> None:
    set_in(folded.config, scrub='"1ms"')
    for path in files_of(folded, 2):
        bit = some_bit(path)
        flip(path, bit)
        scrubbed(folded)
        assert folded.versions()[1].damaged == str(path.relative_to(folded.state))
        flip(path, bit)
        assert verified(folded) == []
    assert folded.store.pointed() == 3
    assert paused(folded) == ""


def test_a_head_that_was_mended_is_sound_again(folded: Sandbox) -> None:
    set_in(folded.config, scrub='"1ms"')
    path = the_first(folded, 3, "slots-00001*")
    bit = some_bit(path)
    flip(path, bit)
    scrubbed(folded)
    flip(path, bit)
    assert folded.mergd("verify", "v3").code == 0
    assert folded.mergd("resume").code == 0
    folded.drop("d", 4)
    assert folded.mergd("run", "--once").code == 0
    assert folded.versions()[-1].parent == 3


def test_where_no_version_is_sound_nothing_is_folded_and_it_is_said(folded: Sandbox) -> None:
    set_in(folded.config, scrub='"1ms"')
    for version in (1, 2, 3):
        spoil(the_first(folded, version, "model-00001*"))
    with pytest.raises(Damaged, match="no other version is sound"):
        scrubbed(folded)
    assert folded.store.pointed() == 3  # as it was: a person decides
    assert all(not version.kept for version in folded.versions())
    assert folded.mergd("run").code == 74


# --------------------------------------------------------------------------------------------------- folding onto slots


def bits_of_slots(merge: Sandbox) -> Iterator[tuple[Path, int]]:
    """Yield a bit of each part of each file of the head's slots: its header, and its first, middle and last bytes."""
    for path in files_of(merge, 3):
        if path.name.startswith("slots-"):
            size = path.stat().st_size
            header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
            yield from ((path, 8 * at + 3) for at in (0, 9, header - 1, header, (header + size) // 2, size - 1))


@pytest.mark.parametrize("memory", [1_000_000, 256_000_000])
def test_nothing_is_folded_onto_one_flipped_bit_of_the_slots(folded: Sandbox, memory: int) -> None:
    set_in(folded.config, memory=str(memory))
    for number, (path, bit) in enumerate(bits_of_slots(folded)):
        flip(path, bit)
        if number == 0:
            folded.drop("d", 4)
        folded.fold_all()
        assert len(folded.versions()) == 3, (path, bit)
        assert folded.versions()[2].damaged == str(path.relative_to(folded.state))
        assert folded.states()["d"] == "ready"
        assert "mergd rollback v2" in paused(folded)
        flip(path, bit)
        assert verified(folded) == []
        assert folded.mergd("resume").code == 0
    with History(folded.store.database) as history:
        row = next(row for row in history.checkpoints.all() if row.name == "d")
        assert {attempt.outcome for attempt in history.checkpoints.attempts(row.id)} == {"abandoned"}  # and no strike
    folded.fold_all()
    assert len(folded.versions()) == 4


def test_the_daemon_goes_on_when_a_fold_meets_damage(folded: Sandbox) -> None:
    name = spoil(the_first(folded, 3, "slots-00001*"))
    with folded.running("run") as daemon:
        eventually((folded.state / "control.sock").exists)
        folded.drop("d", 4)
        eventually(lambda: name in paused(folded))
        status = folded.mergd("status", "--json").json
        assert status["head"] == 3
        assert name in status["trouble"]
        assert folded.mergd("status", "--check").code == 1
        asked = folded.mergd("verify", "head")
        assert asked.code == 74
        assert name in asked.err
        assert folded.mergd("rollback", "v2").code == 0
        assert folded.mergd("resume").code == 0
        eventually(lambda: folded.states()["d"] == "folded")
        assert daemon.runs
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0


# ------------------------------------------------------------------------------------------------------- rolling back


def test_a_rollback_reads_no_file_of_a_version_and_its_files_are_read_thereafter(tmp_path: Path) -> None:
    large = {"w.weight": torch.zeros(2048, 1024)}
    merge = make_merge(tmp_path, large, rule="average", limits=NO_LIMITS)
    for name, seed in SEEDS.items():
        merge.drop(name, seed)
        merge.fold_all()
    with History(merge.store.database, write=True) as history:
        before = bytes_read(os.getpid())
        for target in ("v1", "v3"):
            rollback(Rollback(version=target), history, merge.store, [], "a test")
        assert bytes_read(os.getpid()) - before < 500_000  # of 16 MB
    with merge.running("run") as daemon:
        eventually((merge.state / "control.sock").exists)
        flip(the_first(merge, 2, "model.safetensors"), 8_000_000)
        before = bytes_read(daemon.pid)
        assert merge.mergd("rollback", "v2").code == 0  # nobody knows yet
        assert os.readlink(merge.store.current) in ("000002", "000001")
        eventually(lambda: merge.store.pointed() == 1)
        eventually(lambda: "the head is v1 now" in paused(merge))
        assert bytes_read(daemon.pid) - before > 3 * 8_000_000  # the model and the slots of v2, and those of v1
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0


def bytes_read(pid: int) -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["rchar"])


def test_a_rollback_without_a_daemon_waits_for_no_import_of_torch() -> None:
    script = "import sys, mergd.daemon.cli, mergd.daemon.desk; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_what_a_rollback_trusts_is_size_time_and_the_last_check(folded: Sandbox) -> None:
    path = the_first(folded, 2, "model-00001*")
    with History(folded.store.database, write=True) as history:
        rollback(Rollback(version="v1"), history, folded.store, [], "a test")
        assert folded.store.pointed() == 1
        os.utime(path)
        with pytest.raises(Damaged, match="touched") as touched:
            rollback(Rollback(version="v2"), history, folded.store, [], "a test")
        assert "mergd verify v2" in touched.value.hint
        assert verified(folded, "v2") == []  # it is sound, and has the new time from now on
        rollback(Rollback(version="v2"), history, folded.store, [], "a test")
    assert folded.store.pointed() == 2


# ------------------------------------------------------------------------------------------------------------- by chance


def test_flips_by_chance_are_found_or_change_nothing_that_counts() -> None:
    report = flips(300, seed=2)
    assert report.flips.total() == 330
    assert not report.missed
    assert report.found["mergd.db"] > 5
