"""Whatever people do, in whatever order, with crashes in between: a real loop against a model of it in memory.

Checkpoint N adds a whole number to coordinate N of one weight, so that a fold which is lost, or counts twice, shows
exactly in the bytes that are published.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.merges import NO_LIMITS, Sandbox, make_merge

from mergd.daemon.loop import Loop
from mergd.daemon.requests import (
    AnyRequest,
    Approve,
    Fold,
    Gc,
    Pause,
    Publish,
    Refuse,
    Remerge,
    Remove,
    Replay,
    Resume,
    Rollback,
    Tag,
    Untag,
)
from mergd.state import store as files
from mergd.state.committing import Commit
from mergd.state.errors import MergdError
from mergd.state.history import History

WIDTH = 256  # coordinates: more than there are steps in a run
FAR = 1000.0  # what an unusual checkpoint adds, for which it is held
STEPS = ("draft", "seal", "rename", "restore", "transaction", "link", "sweep")
Recipe = tuple[str, ...]  # the checkpoints in the model
# What a person may have the sum read as: the arguments, and by which factor of it a number of checkpoints is published.
READINGS: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "the sum": ({"rule": "task_arithmetic", "parameters": {"lambda": 1.0}}, lambda folded: 1.0),
    "twice the sum": ({"rule": "task_arithmetic", "parameters": {"lambda": 2.0}}, lambda folded: 2.0),
    "the mean": ({"rule": "average"}, lambda folded: 1.0 / folded if folded else 1.0),
}
AT_ONCE: dict[str, Any] = {
    "rule": "consensus_ta",
    "parameters": {"prun_thre_k": 1, "lambda": 4.0},
}  # no two are about one coordinate


class Crash(BaseException):
    """The process is gone: nothing after this moment is done."""


@contextmanager
def crashing(at: int) -> Iterator[None]:
    """Let the process be gone at a moment: before or after a named step of the protocol, or as a folder is synced."""
    left = [at]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            if left[0] == 0:
                raise Crash
            left[0] -= 1
            result = function(*arguments, **named)
            if left[0] == 0:
                raise Crash
            left[0] -= 1
            return result

        return run

    before = {name: getattr(Commit, name) for name in STEPS}
    sync = files.sync_folder
    try:
        for name, function in before.items():
            setattr(Commit, name, counted(function))
        files.sync_folder = counted(sync)
        yield
    finally:
        for name, function in before.items():
            setattr(Commit, name, function)
        files.sync_folder = sync


class People(RuleBasedStateMachine):
    """What may be done to a merge."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="mergd-machine-"))
        self.added: dict[str, float] = {}  # what each checkpoint adds to its coordinate
        self.states: dict[str, str] = {}
        self.queue: list[str] = []  # ready, while it is paused
        self.recipes: dict[int, Recipe] = {0: ()}  # of each version
        self.readings: dict[int, str] = {0: "the sum"}  # by which what comes after each version is read
        self.at_once: set[int] = set()  # versions that a batch rule merged
        self.head = 0
        self.tags: dict[str, int] = {}
        self.left = 0  # where the head was before a person moved it last
        self.paused = False
        self.bytes: dict[int, dict[str, str]] = {}  # of each version's published files

    @initialize()
    def begin(self) -> None:
        base = {"norm.weight": torch.full((WIDTH,), 7.0)}
        options: dict[str, Any] = {
            "rule": "task_arithmetic",
            "parameters": {"lambda": 1.0},
            "keep_last": 2,
            "keep_within": 0,
        }
        self.merge: Sandbox = make_merge(self.root, base, limits=NO_LIMITS | {"norm": 0.5}, **options)
        self.loop: Loop = self.merge.loop().__enter__()

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.__exit__()
        shutil.rmtree(self.root)

    # -------------------------------------------------------------------------------------------------------- what is done

    def work(self) -> None:
        """Let the loop do all that there is to do."""
        self.loop.post("rescan")
        self.loop.run(until=self.loop.idle)

    def ask(self, request: AnyRequest) -> bool:
        """Ask for something; returns whether it was done."""
        try:
            self.loop.ask(request)
        except MergdError:
            return False
        return True

    def make(self, value: float) -> str:
        """Put a checkpoint into the watched folder, and return its name."""
        name = f"c{len(self.added):03d}"
        weights = {"norm.weight": self.merge.model["norm.weight"].clone()}
        weights["norm.weight"][len(self.added)] += value
        self.merge.drop(name, weights)
        self.added[name] = value
        return name

    def place(self, name: str) -> str:
        return str(self.merge.watch / name)

    def comes_true(self, recipe: Recipe, reading: str = "") -> None:
        """Expect a new version, which is the head; it is read as the one before, unless somebody asks for another reading."""
        number = max(self.recipes) + 1
        self.readings[number] = reading or self.readings[self.head]
        self.recipes[number], self.head = recipe, number

    def is_folded(self, name: str) -> None:
        self.states[name] = "folded"
        self.comes_true((*self.recipes[self.head], name))

    def person_moves(self, recipe_or_number: Recipe | int, reading: str = "") -> None:
        self.left = self.head
        if isinstance(recipe_or_number, int):
            self.head = recipe_or_number
        else:
            self.comes_true(recipe_or_number, reading)

    @rule(count=st.integers(1, 3))
    def drop(self, count: int) -> None:
        for _ in range(count):
            name = self.make(1.0)
            self.states[name] = "ready"
            self.queue.append(name)
        self.work()
        self.fold_queue()

    def fold_queue(self) -> None:
        while self.queue and not self.paused:
            self.is_folded(self.queue.pop(0))

    @rule()
    @precondition(lambda self: not self.paused)
    def drop_something_unusual(self) -> None:
        self.states[self.make(FAR)] = "held"
        self.work()

    @rule(data=st.data())
    @precondition(lambda self: "folded" in self.states.values())
    def drop_a_copy(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, state in self.states.items() if state == "folded"]))
        copy = self.merge.watch / f"copy {len(os.listdir(self.merge.watch))} of {name}"
        shutil.copytree(self.merge.watch / name, copy)
        self.work()
        if self.paused:  # its content is not known before its turn
            shutil.rmtree(copy)
            self.work()

    @rule(data=st.data())
    @precondition(lambda self: "held" in self.states.values())
    def approve(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, state in self.states.items() if state == "held"]))
        assert self.ask(Approve(checkpoints=(self.place(name),)))
        self.states[name] = "ready"
        # Its place in the order is that of the moment when it was first seen: before all that became ready later.
        self.queue = sorted([*self.queue, name])
        self.work()
        self.fold_queue()

    @rule(data=st.data())
    @precondition(lambda self: self.states)
    def refuse(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.states)))
        done = self.ask(Refuse(checkpoint=self.place(name), why="a test"))
        assert done == (self.states[name] in ("held", "ready"))
        if done:
            self.states[name] = "refused"
            self.queue = [other for other in self.queue if other != name]

    @rule(data=st.data())
    @precondition(lambda self: self.head)
    def roll_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([number for number in self.recipes if number]))
        there = number in self.kept()
        assert self.ask(Rollback(version=str(number))) == there
        if there and number != self.head:
            self.person_moves(number)
        self.work()
        self.fold_queue()

    @rule(data=st.data(), exact=st.booleans())
    @precondition(lambda self: self.recipes[self.head])
    def remove(self, data: st.DataObject, exact: bool) -> None:
        name = data.draw(st.sampled_from(self.recipes[self.head]))
        assert self.ask(Remove(checkpoint=self.place(name), exact=exact))
        self.person_moves(tuple(other for other in self.recipes[self.head] if other != name))

    @rule(reading=st.sampled_from(sorted(READINGS)))
    @precondition(lambda self: self.head)
    def publish(self, reading: str) -> None:
        so_already = reading == self.readings[self.head] and self.head not in self.at_once
        assert self.ask(Publish(**READINGS[reading][0])) == (not so_already)
        if not so_already:
            self.person_moves(self.recipes[self.head], reading)

    @rule(reading=st.sampled_from(sorted(READINGS)))
    @precondition(lambda self: self.head)
    def remerge(self, reading: str) -> None:
        assert self.ask(Remerge(**READINGS[reading][0])) == bool(self.recipes[self.head])
        if self.recipes[self.head]:
            self.person_moves(self.recipes[self.head], reading)

    @rule()
    @precondition(lambda self: self.recipes[self.head])
    def remerge_at_once(self) -> None:
        assert self.ask(Remerge(**AT_ONCE))
        self.person_moves(self.recipes[self.head])
        self.at_once.add(self.head)

    @rule(data=st.data())
    @precondition(lambda self: self.head)
    def replay(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([number for number in self.recipes if number]))
        was_there = number in self.kept()
        assert self.ask(Replay(version=str(number))) == (not was_there)
        if not was_there:
            self.tags[f"replayed-{number}"] = number
            assert number in self.kept()

    @rule(data=st.data())
    @precondition(lambda self: not self.paused and "folded" in self.states.values())
    def fold_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, state in self.states.items() if state == "folded"]))
        out = name not in self.recipes[self.head]
        assert self.ask(Fold(checkpoints=(self.place(name),), again=True)) == out
        if out:
            self.is_folded(name)

    @rule(data=st.data(), name=st.sampled_from(["good", "better"]), force=st.booleans())
    @precondition(lambda self: self.head)
    def tag(self, data: st.DataObject, name: str, force: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.kept())))
        may = force or self.tags.get(name, number) == number
        assert self.ask(Tag(name=name, version=str(number), force=force)) == may
        if may:
            self.tags[name] = number

    @rule(data=st.data())
    @precondition(lambda self: self.tags)
    def untag(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.tags)))
        assert self.ask(Untag(name=name))
        assert not self.ask(Untag(name=name))
        del self.tags[name]
        assert self.ask(Gc())

    @rule()
    @precondition(lambda self: self.head and not self.paused)
    def pause(self) -> None:
        assert self.ask(Pause(why="a test"))
        self.paused = True

    @rule()
    @precondition(lambda self: self.paused)
    def resume(self) -> None:
        assert self.ask(Resume())
        self.paused = False
        self.work()
        self.fold_queue()

    # --------------------------------------------------------------------------------------------- restarts and crashes

    @rule()
    def restart(self) -> None:
        self.loop.__exit__()
        self.loop = self.merge.loop().__enter__()
        self.work()

    def crash(self) -> None:
        """Be gone without any of what a process does when it ends; and come back."""
        with suppress(RuntimeError):
            self.loop._work.progress.abandon.set()
            self.loop._work.close()
        self.loop._upkeep.close()
        self.loop._scrubbing.close()
        self.loop._sources.close()
        self.loop._intake.close()
        self.loop._history.close()
        self.loop._lock.release()
        self.loop = self.merge.loop().__enter__()
        self.work()

    @rule(at=st.integers(0, 30))
    @precondition(lambda self: not self.paused)
    def crash_in_a_fold(self, at: int) -> None:
        name = self.make(1.0)
        self.states[name] = "ready"
        try:
            with crashing(at):
                self.work()
        except Crash:
            self.crash()
        self.is_folded(name)

    @rule(data=st.data(), at=st.integers(0, 8))
    @precondition(lambda self: len(self.kept()) > 1)
    def crash_in_a_rollback(self, data: st.DataObject, at: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.kept() - {self.head})))
        try:
            with crashing(at):
                assert self.ask(Rollback(version=str(number)))
        except Crash:
            self.crash()
        if self.head_is() == number:  # else it was not recorded before the crash
            self.person_moves(number)

    @rule(data=st.data(), at=st.integers(0, 60), exact=st.booleans())
    @precondition(lambda self: self.recipes[self.head])
    def crash_in_a_removal(self, data: st.DataObject, at: int, exact: bool) -> None:
        name = data.draw(st.sampled_from(self.recipes[self.head]))
        try:
            with crashing(at):
                assert self.ask(Remove(checkpoint=self.place(name), exact=exact))
        except Crash:
            self.crash()
        self.person_moves(tuple(other for other in self.recipes[self.head] if other != name))

    @rule(at=st.integers(0, 30), reading=st.sampled_from(sorted(READINGS)), at_once=st.booleans())
    @precondition(lambda self: self.recipes[self.head])
    def crash_in_a_remerge(self, at: int, reading: str, at_once: bool) -> None:
        try:
            with crashing(at):
                assert self.ask(Remerge(**AT_ONCE if at_once else READINGS[reading][0]))
        except Crash:
            self.crash()
        self.person_moves(self.recipes[self.head], "" if at_once else reading)
        self.at_once |= {self.head} if at_once else set()

    @rule(at=st.integers(0, 30))
    @precondition(lambda self: self.head)
    def crash_in_a_publish(self, at: int) -> None:
        reading = "the mean" if self.readings[self.head] != "the mean" else "the sum"
        try:
            with crashing(at):
                assert self.ask(Publish(**READINGS[reading][0]))
        except Crash:
            self.crash()
        self.person_moves(self.recipes[self.head], reading)

    # ------------------------------------------------------------------------------------------------ what must be true

    def kept(self) -> set[int]:
        """Return the versions that can be rolled back to."""
        with History(self.merge.store.database) as history:
            return {version.number for version in history.versions() if version.kept}

    def head_is(self) -> int:
        with History(self.merge.store.database) as history:
            head = history.head()
            return head.number if head else 0

    @invariant()
    def the_head_holds_each_of_its_checkpoints_once(self) -> None:
        if not hasattr(self, "loop"):
            return
        assert self.head_is() == self.head
        assert self.merge.store.pointed() == (self.head or None)
        if self.head:
            inside = self.recipes[self.head]
            factor = 4.0 if self.head in self.at_once else READINGS[self.readings[self.head]][1](len(inside))
            expected = torch.full((WIDTH,), 7.0)
            for name in inside:
                expected[int(name[1:])] += factor * torch.tensor(self.added[name])
            assert torch.equal(self.merge.published()["norm.weight"], expected)

    @invariant()
    def what_is_kept_has_the_bytes_that_it_had(self) -> None:
        if not hasattr(self, "loop"):
            return
        versions = self.merge.versions()
        assert [version.number for version in versions] == [number for number in sorted(self.recipes) if number]
        for version in versions:
            if version.kept:
                now = published_bytes(self.merge.store.model(version.number))
                assert self.bytes.setdefault(version.number, now) == now
                assert version.totals.folded == len(self.recipes[version.number])
            assert version.slots_kept == bool(self.merge.store.files(version.number, "slots"))
            assert version.model_kept == self.merge.store.model(version.number).exists()
        kept = self.kept()
        assert kept >= {number for number in (self.head, self.left, *self.tags.values()) if number}

    @invariant()
    def every_checkpoint_has_its_state_and_nothing_is_left_over(self) -> None:
        if not hasattr(self, "loop"):
            return
        newest = {row.name: row.state for row in self.merge.checkpoints() if row.name in self.states}
        assert newest == self.states
        assert not os.listdir(self.merge.state / "drafts")


def published_bytes(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a model."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
