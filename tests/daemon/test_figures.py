"""The figures against the history, and the file that they are written to."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.merges import Sandbox, set_in
from support.scraping import Scrape, ask, free_port, scrape

from mergd.daemon import observing
from mergd.daemon.figures import FIGURES, STATES, Facts, unix
from mergd.daemon.judging import Given
from mergd.daemon.loop import Loop
from mergd.daemon.observing import STALE, Observing
from mergd.daemon.requests import Pause, Rollback
from mergd.state.history import History
from mergd.state.tallies import Tally


@pytest.fixture
def merge(merge: Sandbox) -> Sandbox:
    set_in(merge.config, **{"metrics.file": f'"{merge.root / "mergd.prom"}"'})
    return merge


def file_of(merge: Sandbox) -> Path:
    return merge.root / "mergd.prom"


@contextmanager
def observed(merge: Sandbox, name: str = "llama") -> Iterator[tuple[Loop, Observing]]:
    """Give a loop that is observed, as the service does it."""
    with merge.loop() as loop, Observing(merge.settings, name) as watcher:
        loop.told, loop.turned = watcher.told, watcher.turned
        loop.post("rescan")
        yield loop, watcher


def figures(merge: Sandbox) -> Scrape:
    """Fold all that is there, and return what the file says thereafter."""
    with observed(merge) as (loop, watcher):
        loop.run(until=loop.idle)
        loop.tell()
        watcher._written = float("-inf")
        watcher.turned()
    return scrape(file_of(merge).read_text())


def drop_three(merge: Sandbox) -> None:
    """Drop two that are folded, and one that is refused."""
    merge.drop("a", 1)
    merge.drop("b", 2)
    merge.drop("c", {name: tensor for name, tensor in merge.fine_tuned(3).items() if "tall" not in name})


def test_what_hooks_could_not_be_told_is_counted_over_all_of_them() -> None:
    hooks = {"serving": {"undelivered": 2}, "chat": {"undelivered": 1}}
    assert Facts({"hooks": hooks}, Tally(), {}, Given()).undelivered == 3


def test_the_figures_are_those_of_the_history(merge: Sandbox) -> None:
    drop_three(merge)
    found, versions = figures(merge), merge.versions()
    assert found.value("mergd_folds_total") == 2
    assert found.value("mergd_head_version") == found.value("mergd_versions_kept") == 2
    assert found.value("mergd_head_checkpoints") == 2
    assert found.value("mergd_refusals_total", code="missing-weights") == 1
    states = {state: found.value("mergd_checkpoints", state=state) for state in STATES}
    assert states == dict.fromkeys(STATES, 0) | {"folded": 2, "refused": 1}
    assert found.value("mergd_bytes_read_total") == sum(version.bytes_read for version in versions) > 0
    assert found.value("mergd_bytes_written_total") == sum(version.bytes_written for version in versions) > 0
    for step in ("wait", "fold", "publish", "sync"):
        took = [version.seconds[step] for version in versions]
        assert found.value("mergd_fold_seconds_count", step=step) == 2
        assert found.value("mergd_fold_seconds_sum", step=step) == pytest.approx(sum(took))
    assert found.value("mergd_last_fold_timestamp_seconds") == pytest.approx(unix(versions[-1].created_at))
    assert found.value("mergd_trouble") == found.value("mergd_paused") == 0


def test_what_the_history_counts_goes_on_over_a_restart(merge: Sandbox) -> None:
    drop_three(merge)
    before = figures(merge)
    merge.drop("d", 4)
    after = figures(merge)
    assert after.value("mergd_folds_total") == 3
    assert after.value("mergd_bytes_read_total") > before.value("mergd_bytes_read_total")
    assert after.value("mergd_fold_seconds_count", step="fold") == 3
    assert "mergd_refusals_total" not in after.names  # that counts from the daemon's start on, which is a figure too
    assert after.value("mergd_start_timestamp_seconds") > before.value("mergd_start_timestamp_seconds")


def test_a_rollback_takes_back_no_counter(merge: Sandbox) -> None:
    drop_three(merge)
    figures(merge)
    with merge.loop() as loop:
        loop.ask(Rollback(version="v1"))
    found = figures(merge)
    assert (found.value("mergd_head_version"), found.value("mergd_folds_total")) == (1, 2)


def test_a_tally_reads_only_what_is_new(merge: Sandbox) -> None:
    drop_three(merge)
    merge.fold_all()
    with History(merge.store.database) as history:
        whole = history.tallies.upto_now(Tally())
        assert (whole.last, whole.folds) == (2, 2)
        assert history.tallies.upto_now(whole) is whole
        doubled = history.tallies.upto_now(Tally(last=1, folds=10, steps={"fold": (10, 5.0)}))
        assert (doubled.folds, doubled.steps["fold"][0]) == (11, 11)


def test_an_empty_merge_has_every_figure(merge: Sandbox) -> None:
    found = figures(merge)
    assert found.kinds.keys() == {figure.name.removesuffix("_total") for figure in FIGURES}
    assert found.value("mergd_last_fold_timestamp_seconds") == found.value("mergd_head_version") == 0


def test_a_pause_and_what_waits_meanwhile_are_seen(merge: Sandbox) -> None:
    merge.drop("a", 1)
    with observed(merge) as (loop, watcher):
        loop.ask(Pause(why="a test"))
        loop.run(until=loop.idle)
        loop.tell()
        watcher._written = float("-inf")
        watcher.turned()
    found = scrape(file_of(merge).read_text())
    assert found.value("mergd_paused") == 1
    assert found.value("mergd_checkpoints", state="waiting") == 1
    assert found.value("mergd_oldest_timestamp_seconds", state="ready") == pytest.approx(
        unix(merge.checkpoints()[0].since)
    )
    assert found.value("mergd_oldest_timestamp_seconds", state="held") == 0


def test_no_label_has_a_name_or_a_path(merge: Sandbox) -> None:
    merge.drop("secret-project", 1)
    merge.drop("another-secret", {name: t for name, t in merge.fine_tuned(3).items() if "tall" not in name})
    found = figures(merge)
    text = file_of(merge).read_text()
    assert "secret" not in text
    assert str(merge.root) not in text
    assert found.labels()["merge"] == {"llama"}
    assert found.labels().keys() == {"merge", "state", "step", "code", "version"}


def test_codes_of_other_packages_are_bounded() -> None:
    odd = {("refused", code): 1 for code in ("/a/path", "A name", "x" * 80, "über", "")}
    many = {("refused", f"code-{number}"): 1 for number in range(1000)}
    counted = Facts({}, given=Given(odd | many | {("held", "norm"): 3})).by_code("refused")
    assert len(counted) <= 101
    assert counted["other"] >= 5
    assert sum(counted.values()) == 1005


# ----------------------------------------------------------------------------------------------------------- the file


def test_everybody_may_read_the_file_and_nothing_is_left_beside_it(merge: Sandbox) -> None:
    before = os.umask(0o077)
    try:
        figures(merge)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file_of(merge).stat().st_mode) == 0o644
    assert [path.name for path in merge.root.iterdir() if "prom" in path.name] == ["mergd.prom"]


def test_a_reader_sees_the_old_file_or_the_new_one(merge: Sandbox) -> None:
    figures(merge)
    with file_of(merge).open() as opened:
        merge.drop("a", 1)
        assert figures(merge).value("mergd_folds_total") == 1
        assert scrape(opened.read()).value("mergd_folds_total") == 0


def test_while_nothing_happens_the_file_is_written_seldom(merge: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with observed(merge) as (loop, _):
        loop.run(until=lambda: file_of(merge).exists())
        monkeypatch.setattr(observing, "WRITE_SOON", 0.0)
        loop.run(until=loop.idle)
        loop.turned()
        file_of(merge).unlink()
        loop.post("rescan")
        loop.turn()
        loop.turned()
        assert not file_of(merge).exists()
        monkeypatch.setattr(observing, "WRITE_EVERY", 0.0)
        loop.turned()
        assert file_of(merge).exists()


@pytest.mark.parametrize("obstacle", ["no folder", "a folder in its place", "full"])
def test_a_file_that_cannot_be_written_stops_nothing(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    monkeypatch.setattr(observing, "WRITE_SOON", -1.0)
    monkeypatch.setattr(observing, "WRITE_EVERY", -1.0)
    if obstacle == "no folder":
        set_in(merge.config, **{"metrics.file": f'"{merge.root}/no/such/mergd.prom"'})
    elif obstacle == "full":
        monkeypatch.setattr(observing, "tell_everybody", full)
    else:
        file_of(merge).mkdir()
    merge.drop("a", 1)
    with observed(merge) as (loop, _):
        loop.run(until=loop.idle)
        loop.turned()
    assert merge.states() == {"a": "folded"}
    assert len([line for line in caplog.messages if "is out of date" in line]) == 1  # not at each turn


def full(path: Path, text: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ------------------------------------------------------------------------------------------------------------- health


def test_all_is_well_while_the_loop_turns_and_nothing_is_in_trouble(merge: Sandbox) -> None:
    with observed(merge) as (loop, watcher):
        assert watcher.ailing() == "it has not begun yet"
        loop.run(until=loop.idle)
        assert watcher.ailing() == ""
        watcher._turned -= 2 * STALE
        assert watcher.ailing().startswith("the loop has not turned for 120 s")
        loop.turned()
        assert watcher.ailing() == ""


def test_trouble_is_told_in_one_line(merge: Sandbox) -> None:
    with observed(merge) as (loop, watcher):
        loop.run(until=loop.idle)
        merge.watch.rename(merge.root / "elsewhere")
        loop.post("rescan")
        loop.run(until=lambda: bool(loop.trouble))
        loop.tell()
        assert str(merge.watch) in watcher.ailing()
        assert "\n" not in watcher.ailing()
        loop.turned()


def test_nothing_is_read_where_nobody_looks(merge: Sandbox) -> None:
    set_in(merge.config, **{"metrics.file": '""'})
    with observed(merge) as (loop, watcher):
        loop.run(until=loop.idle)
        assert watcher._facts is None


@pytest.mark.parametrize(
    ("given", "shown"), [("llama-70b.v2", "llama-70b.v2"), ("a\nb{", "a_b_"), ("x" * 99, "x" * 64)]
)
def test_the_name_of_a_merge_is_one_that_a_label_may_have(merge: Sandbox, given: str, shown: str) -> None:
    assert Observing(merge.settings, given)._name == shown


def test_a_port_that_cannot_be_had_is_tried_again(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    set_in(merge.config, **{"metrics.listen": f'"127.0.0.1:{port}"'})
    with socket.create_server(("127.0.0.1", port)) as taken, Observing(merge.settings, "llama") as watcher:
        monkeypatch.setattr(observing, "LISTEN_AGAIN", -1.0)
        watcher.turned()
        watcher.turned()
        assert caplog.text.count("cannot be had") == 1
        taken.close()
        watcher.turned()
        assert ask(port, "/healthz").status == 503
