"""kill -9 at moments of chance while mergd folds, rolls back and drops: nothing acknowledged is lost, nothing counts twice.

Half of the kills come at a call that the shim counts to, spread over the steps of the commit protocol; half after a time
of chance. After each the state is recovered by `mergd run --once` and judged.
"""

import json
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from faults.children import MAKING, RARE, STEPS, Aim, Child, Counting
from faults.judging import judge
from faults.onehot import coordinate_of, see
from faults.points import AT_ONCE, MEAN, PINNED, nothing_broken
from faults.shim import FOR_EVER, Faults

IDLE = 0.75  # seconds without a call: then there is nothing left to do
EARLY = 12  # calls after the recovery has begun
SHARE = 0.6  # of the kills, at least, come while a version is made
AGAIN = 0.2  # share of the trials in which the recovery is killed too
ASKED = 0.3  # share of the trials in which a person asks for something


@dataclass
class Report:
    """What a run saw."""

    kills: int = 0
    aimed: int = 0  # at a step of the protocol, and hit
    steps: Counter[str] = field(default_factory=Counter)  # of the protocol, at the moment of the kill
    commands: Counter[str] = field(default_factory=Counter)  # that were killed
    calls: Counter[str] = field(default_factory=Counter)  # before which the shim killed
    folds: int = 0
    rollbacks: int = 0
    dropped: int = 0  # versions whose files went
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def making(self) -> float:
        """The share of kills between the first write of a draft and the swap of the link."""
        return sum(self.steps[step] for step in MAKING) / max(1, self.kills)

    @property
    def missed(self) -> list[str]:
        """The steps that no kill hit."""
        return [step for step in STEPS if not self.steps[step]]

    @property
    def good(self) -> bool:
        return not self.wrong and not self.missed and self.making >= 0.5

    def __str__(self) -> str:
        widest = max(self.steps.values(), default=1)
        bars = [f"  {step or 'elsewhere':<12}{n:>6}  {'#' * -(-40 * n // widest)}" for step, n in self._by_step()]
        return "\n".join(
            [
                f"kills: {self.kills} in {self.seconds:.0f} s ({self.seconds / max(1, self.kills):.2f} s each)",
                *bars,
                f"from the first write of a draft to the swap of the link: {self.making:.0%}",
                f"killed: {dict(self.commands.most_common())}",
                f"before: {dict(self.calls.most_common())}",
                f"versions: {self.folds}, moves by rollback: {self.rollbacks}, versions dropped: {self.dropped}",
                f"steps never hit: {', '.join(self.missed) or 'none'}",
                f"wrong: {len(self.wrong)}",
                *self.wrong,
            ]
        )

    def _by_step(self) -> list[tuple[str, int]]:
        return [(step, self.steps[step]) for step in [*STEPS, *RARE, ""]]


class Trials:
    """Kills in one merge, one after another."""

    def __init__(
        self, root: Path, faults: Faults, chance: random.Random, report: Report, broken: Callable[[], None]
    ) -> None:
        keep = {"keep_last": 2, "keep_slots": chance.randint(0, 1)}
        self._merge, self._faults = Counting(root, faults, PINNED, **keep), faults
        self._chance, self._report, self._broken = chance, report, broken
        self._dropped: list[str] = []
        self._making = 0.0  # seconds from a draft's first write to the swap of the link
        self._calls: dict[str, int] = {}  # of each step, in one fold
        self._measure()

    def _measure(self) -> None:
        """Do what will be killed, with nothing done to it."""
        self._drop()
        self._faults.arm(self._merge.state)
        began = 0.0
        child = self._merge.start("run", "--once", broken=self._broken)
        while not child.ended():
            if self._faults.step in MAKING:
                began = began or time.monotonic()
                self._making = time.monotonic() - began
            time.sleep(0.0002)
        self._calls = Counter(call.step for call in self._faults.calls())

    def _drop(self) -> None:
        self._dropped.append(self._merge.drop(len(self._dropped)))

    def full(self) -> bool:
        """Whether it is time for a new merge: the first folds of one are killed too."""
        return len(self._dropped) >= 40

    def one(self) -> None:
        """Kill once, recover, and judge."""
        for _ in range(self._chance.randint(1, 2)):
            self._drop()
        behind = self._report.making < SHARE
        asked = self._asked() if self._chance.random() < ASKED and not behind else ("run",)
        wrong: list[str] = []
        if asked[0] == "rollback" and self._chance.random() < 0.5:
            child, wrong = self._while_asked(asked)
        else:
            by_call = self._report.missed or self._report.kills % 2
            child = self._by_call(asked) if by_call else self._by_time(asked, anywhere=not behind)
        if child.code == -signal.SIGKILL:
            self._note(asked[0])
        elif child.code not in (0, 2, 69):  # done, or not to be done
            wrong.append(f"{asked} ended with {child.code}: {child.err}")
        at = f"kill {self._report.kills}, {' '.join(asked)} at {self._faults.step or 'elsewhere'}"
        before = see(self._merge.state)
        if self._chance.random() < AGAIN and not behind:
            self._kill_recovery()
        recovered = self._merge.run("run", "--once", expect=(0, 1, 69, 74))
        wrong += [recovered.err] if recovered.code else judge(self._merge.state, before, self._dropped)
        self._report.wrong += [f"{at}: {text}" for text in wrong]

    def _kill_recovery(self) -> None:
        """Kill what should make it good, early on; what comes next has to do it all the same."""
        self._faults.arm(self._merge.state, "kill", first=FOR_EVER)
        aim = Aim("recover", self._chance.randint(1, EARLY))
        if self._merge.start("run", "--once", aim=aim, broken=self._broken).wait() == -signal.SIGKILL:
            self._note("recovery")

    def _asked(self) -> tuple[str, ...]:
        """Return what a person asks for, of all that makes sense now."""
        seen = see(self._merge.state)
        kept = [f"v{number}" for number, version in seen.versions.items() if version.model and number != seen.head]
        gone = [f"v{number}" for number, version in seen.versions.items() if not version.model]
        names, inside = {version.name for version in seen.versions.values()} - {""}, seen.counts(seen.head)
        choices = {
            ("rollback",): kept,
            ("fold", "--again"): sorted(name for name in names if not inside[coordinate_of(name)]),
            ("remove",): sorted(name for name in names if inside[coordinate_of(name)]),
            ("replay",): gone[-2:],
            ("publish", "--scale"): ["0.5", "1", "2"] if seen.head else [],
            ("remerge", *MEAN): ["--json"] if inside else [],
            ("remerge", *AT_ONCE): ["--json"] if inside else [],
        }
        words = self._chance.choice([("gc",), *(words for words, about in choices.items() if about)])
        return (*words, self._chance.choice(choices[words])) if words in choices else words

    def _by_call(self, asked: tuple[str, ...]) -> Child:
        """Start a command and let it be killed at a call of the step whose turn it is; at any one if it has no steps."""
        step = STEPS[self._report.aimed % len(STEPS)]
        first = self._chance.randint(1, 25) if asked[0] == "rollback" else FOR_EVER
        self._faults.arm(self._merge.state, "kill", first=first)
        aim = Aim(step, self._chance.randint(1, max(1, self._calls[step])))
        child = self._merge.start(*asked, aim=aim, broken=self._broken)
        self._until(child, lambda: False)
        child.kill()
        self._report.aimed += self._faults.step == step
        return child

    def _by_time(self, asked: tuple[str, ...], anywhere: bool) -> Child:
        """Start a command and kill it at a moment of chance: while it makes a version, or one time in four anywhere."""
        self._faults.arm(self._merge.state)
        child, anywhere = self._merge.start(*asked, broken=self._broken), anywhere and self._chance.random() < 0.25
        calls = self._chance.randint(1, sum(self._calls.values()))
        self._until(child, lambda: self._faults.count >= calls if anywhere else self._faults.step in MAKING)
        time.sleep(self._chance.uniform(0, self._making))
        child.kill()
        return child

    def _while_asked(self, asked: tuple[str, ...]) -> tuple[Child, list[str]]:
        """Kill a daemon while it is asked for something; says what is wrong if it said yes and did nothing."""
        self._faults.arm(self._merge.state)
        daemon = self._merge.start("run", broken=self._broken)
        self._until(daemon, lambda: "control.sock" in (self._merge.state / "lock").read_text())
        person = self._merge.start(*asked, "--json")
        time.sleep(self._chance.uniform(0, 2 * self._making))
        daemon.kill()
        person.wait()
        if person.code != 0:
            return daemon, []
        answer = json.loads(person.out)
        done = (answer["before"], answer["head"])
        moves = [(move[1], move[2]) for move in see(self._merge.state).moves]
        return daemon, [] if done in moves or done[0] == done[1] else [f"told to be done, and is not: {done}"]

    def _until(self, child: Child, moment: Callable[[], bool]) -> None:
        """Wait for a moment, or until the child has ended or has nothing left to do."""
        last, since = -1, time.monotonic()
        while not (child.ended() or moment() or time.monotonic() - since > IDLE):
            if self._faults.count != last:
                last, since = self._faults.count, time.monotonic()
            time.sleep(0.0003)

    def _note(self, command: str) -> None:
        report = self._report
        report.kills += 1
        report.steps[self._faults.step] += 1
        report.commands[command] += 1
        if self._faults.fired:
            report.calls[self._faults.calls()[-1].kind] += 1

    def end(self) -> None:
        """Add up what came of it all."""
        seen = see(self._merge.state)
        self._report.folds += len(seen.versions)
        self._report.rollbacks += sum(move[4] == "rollback" for move in seen.moves)
        self._report.dropped += sum(not version.model for version in seen.versions.values())


def kill(faults: Faults, count: int, seed: int, broken: Callable[[], None] = nothing_broken) -> Report:
    """Kill so often, and return what was seen; a broken protocol ends it at the first wrong."""
    report, chance, began = Report(), random.Random(seed), time.monotonic()
    while report.kills < count and not report.wrong:
        with tempfile.TemporaryDirectory() as folder:
            trials = Trials(Path(folder) / "merge", faults, chance, report, broken)
            while report.kills < count and not report.wrong and not trials.full():
                trials.one()
            trials.end()
    report.seconds = time.monotonic() - began
    return report
