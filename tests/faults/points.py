"""kill -9 before every call with which a command changes the state, and in the middle of every write.

A command's calls are listed first; then, from the same state each time, it is killed at the first, the second, and so on,
recovered by the same command, and judged.
"""

import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from faults.children import Counting
from faults.judging import judge
from faults.onehot import name_of, see
from faults.shim import Call, Faults
from support.merges import set_in

Command = tuple[str, ...]


@dataclass(frozen=True)
class Scenario:
    """A command to be killed, and how the state comes to be that it starts from."""

    killed: Command
    folded: int  # checkpoints that are folded before
    before: tuple[Command, ...] = ()
    keep_last: int = 5
    archive: int = 0  # bytes of sources that are pinned
    set_last: int = 0  # keep_last from then on
    dropped: int = 1  # checkpoints that wait in the watched folder
    head: int = 3  # at the end
    since: str = ""  # only the calls from this step on
    recovered: tuple[int, ...] = (0,)  # exit codes of the same command after the kill
    run_again: bool = False  # the same command would do it twice: what was written down has to be done without it


MEAN = ("--rule", "average", "--scale", "0.5")  # by which what is counted once more is a whole number after all
AT_ONCE = ("--rule", "consensus_ta", "--set", "prun_thre_k=1", "--set", "lambda=2.0")  # no two are about one coordinate
PINNED = 5000  # bytes: of the two last checkpoints
SCENARIOS = {
    "first fold": Scenario(("run", "--once"), 0, head=1),
    "fold": Scenario(("run", "--once"), 2),
    "retention drop": Scenario(("run", "--once"), 2, keep_last=2, since="transaction"),
    "fold that pins its source": Scenario(("run", "--once"), 2, archive=PINNED),
    "gc": Scenario(("gc",), 4, dropped=0, head=4, set_last=1),
    "rollback": Scenario(("rollback", "v1"), 2, dropped=0, head=1),
    "remove": Scenario(("remove", name_of(1)), 3, dropped=0, head=4, recovered=(0, 2)),
    "remove, folding the others": Scenario(("remove", name_of(0), "--exact"), 3, dropped=0, head=4, recovered=(0, 2)),
    "replay": Scenario(("replay", "v1"), 3, keep_last=1, dropped=0, head=3, recovered=(0, 2)),
    "publish": Scenario(("publish", "--scale", "2"), 3, dropped=0, head=4, recovered=(0, 2)),
    "remerge": Scenario(("remerge", *MEAN), 3, dropped=0, head=4, run_again=True),
    "remerge by a batch rule": Scenario(("remerge", *AT_ONCE), 3, dropped=0, head=4, run_again=True),
    "fold again": Scenario(("fold", "--again", name_of(1)), 2, (("rollback", "v1"),), dropped=0, recovered=(0, 2)),
}


@dataclass
class Report:
    """What the kills of one scenario showed."""

    name: str
    calls: list[Call] = field(default_factory=list)  # of the command, with nothing done to it
    kills: Counter[str] = field(default_factory=Counter)  # by what was done
    kinds: Counter[str] = field(default_factory=Counter)  # of the calls that were killed at
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common())
        done = f"{self.kills['kill']} kills before a call, {self.kills['tear']} in the middle of a write"
        head = (
            f"{self.name}: {len(self.calls)} calls; {done}, in {self.seconds:.0f} s: {kinds}; wrong: {len(self.wrong)}"
        )
        return "\n".join([head, *self.wrong])


class Points:
    """The calls of one scenario's command, and the state that it starts from."""

    def __init__(self, root: Path, name: str, faults: Faults, broken: Callable[[], None]) -> None:
        self._scenario, self._faults, self._broken = SCENARIOS[name], faults, broken
        self._merge, self._template = (
            Counting(root / "merge", faults, keep_last=SCENARIOS[name].keep_last, archive=SCENARIOS[name].archive),
            root / "template",
        )
        self.report = Report(name)
        self._prepare()

    def _prepare(self) -> None:
        scenario, merge = self._scenario, self._merge
        for k in range(scenario.folded):
            merge.drop(k)
            merge.run("run", "--once")
        for command in scenario.before:
            merge.run(*command)
        for k in range(scenario.folded, scenario.folded + scenario.dropped):
            merge.drop(k)
        if scenario.set_last:
            set_in(merge.config, keep_last=str(scenario.set_last))
        shutil.copytree(merge.state, self._template, symlinks=True)
        self._faults.arm(merge.state)
        merge.start(*scenario.killed, broken=self._broken).wait()
        self.report.calls = self._faults.calls()

    def all(self) -> list[tuple[str, Call]]:
        """Return the calls to kill at, each with what is done there."""
        steps = [call.step for call in self.report.calls]
        calls = self.report.calls[steps.index(self._scenario.since) if self._scenario.since else 0 :]
        return [("kill", call) for call in calls] + [("tear", call) for call in calls if call.kind == "write"]

    def one(self, action: str, call: Call) -> None:
        """Kill at one call, recover, and judge."""
        merge, scenario, report = self._merge, self._scenario, self.report
        shutil.rmtree(merge.state)
        shutil.copytree(self._template, merge.state, symlinks=True)
        self._faults.arm(merge.state, action, first=call.number)
        child = merge.start(*scenario.killed, broken=self._broken)
        if child.wait() != -signal.SIGKILL:
            return  # it made fewer calls this time: some hang on the clock
        at = self._faults.calls()[-1]
        report.kills[action] += 1
        report.kinds[at.kind] += 1
        before = see(merge.state)
        command = ("run", "--once") if scenario.run_again else scenario.killed
        recovered = merge.run(*command, expect=(0, 1, 2, 69, 74))
        wrong = [] if recovered.code in scenario.recovered else [f"exit code {recovered.code}: {recovered.err}"]
        wrong += judge(merge.state, before, [name_of(k) for k in range(scenario.folded + scenario.dropped)])
        expected = scenario.head if before.tasks or not scenario.run_again else scenario.folded
        if (head := see(merge.state).head) != expected:
            wrong.append(f"the head is v{head}, not v{expected}")
        report.wrong += [f"{report.name}, {action} at call {at.number}, {at}: {text}" for text in wrong]


def nothing_broken() -> None:
    """Leave the protocol as it is."""


def kill_at_calls(name: str, faults: Faults, every: int = 1, offset: int = 0) -> Report:
    """Kill one scenario's command at each of its calls, or at one in so many."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        points = Points(Path(folder), name, faults, nothing_broken)
        for action, call in points.all()[offset % every :: every]:
            points.one(action, call)
    points.report.seconds = time.monotonic() - began
    return points.report


def kill_broken(faults: Faults, broken: Callable[[], None]) -> Report:
    """Kill a fold around a broken commit point, from the last call of the transaction back, until something is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        points = Points(Path(folder), "fold", faults, broken)
        for action, call in reversed(points.all()):
            if call.step == "transaction" and action == "kill" and not points.report.wrong:
                points.one(action, call)
    return points.report
