"""The loop: one thread takes messages and writes the history, while another one folds, one checkpoint at a time.

A message only says that there is something to do; what it is, is looked up. A command that finds no daemon runs this
same loop until it has its answer.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Callable

from ..state.disk_errors import meaning
from ..state.errors import Abandoned, MergdError, Unavailable
from .control import Answer, Ask
from .deciding import preempts
from .hooking import check_keys
from .inbox import Message
from .judging import Job
from .machine import trim_memory
from .opening import reopen_merge
from .parts import Parts
from .requests import AnyRequest, Fold, Retry, Rollback
from .retention import Keep

log = logging.getLogger(__name__)

TICK = 0.25  # seconds between looks at a running fold
TELL_EVERY = 0.5  # seconds between writings of status.json while one runs
NAP = 1.0  # seconds that the loop waits at most: a signal that another thread gets does not wake it


class Loop(Parts):
    """Takes turns with the parts of one merge."""

    def watch(self, events: bool) -> None:
        """Let the watched folder's events wake the scan, or no more."""
        self._sources.watch(lambda: self.post("rescan"), events=events)

    def poll(self) -> None:
        """Ask elsewhere what there is now; from any thread, for up to a minute."""
        if self._sources.remote is not None:
            self._sources.poll()
            self.post("rescan")

    def push(self) -> None:
        """Let what the head moves to be pushed, and what is owed. Raises Misconfigured where a token or a key is missing."""
        check_keys(self.settings)
        self._pushing.open()
        self.post("told")

    def hush(self) -> None:
        """Ask nothing elsewhere any more; from any thread."""
        self._sources.hush()

    def listen_at(self, socket: str) -> None:
        """Write where the control socket is, for those who find the lock taken."""
        self._lock.describe(self._doing, socket)

    # -------------------------------------------------------------------------------------------------------- turns

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Take turns until `until` says so, or until `stop`."""
        while not self._stopping and not until():
            self.turn()
            self.turned()

    def turn(self, *, only_asked: bool = False) -> None:
        """Take the messages there are, see what is due, and keep one fold running (`only_asked`: if somebody waits)."""
        self._act_on_all(self._inbox.take(self._patience()))
        with self._minding_the_disk():
            self._work.record_ends()
            self._upkeep.take()
            self._scrub()
            if self._work.worker.disk.trouble and self._work.worker.disk.suffices():
                self._scanning.hint()
            if self._scanning.patience == 0:
                self._rescan()
            if self._work.busy:
                self._look_at_work()
            self._look_at_preparing()
            if self._work.free and not self._stopping and (self._desk.waiting or not only_asked):
                self._begin_work()
        with self._minding_the_disk():
            if self._hooking.turn():
                self.tell()
        with self._minding_the_disk():  # whatever could not be written: nobody waits for ever
            self._desk.answer(self._stuck)
            if bool(self.trouble) != self._told_trouble:
                self.tell()

    def _scrub(self) -> None:
        """Go on reading what is due or asked for, and let follow what follows from what was found."""
        if self._scrubbing.turn(folding=self._work.busy, mending=self._work.mending):
            self._work.worker.after_move()
            self.tell(log_too=True)

    def ask(self, request: AnyRequest) -> Answer:
        """Carry out a request here and now, as a daemon would; returns its result or raises its error."""
        ask = Ask(request, f"uid {os.getuid()}")
        self.post(ask)
        while ask.outcome is None and not self._stopping:
            self.turn(only_asked=True)
        with self._minding_the_disk():
            self._hooking.finish()
        if isinstance(ask.outcome, MergdError):
            raise ask.outcome
        if ask.outcome is None:
            raise Abandoned
        return ask.outcome

    # ----------------------------------------------------------------------------------------------------- messages

    def _patience(self) -> float:
        if self._work.busy:
            return 0.0 if self._work.ended else TICK
        if self._work.free and self._work.waits():
            return TICK if self._preparing.busy else 0.0
        return min(NAP, self._scanning.patience)

    def _act_on_all(self, messages: list[Message]) -> None:
        while messages:
            message = messages.pop(0)
            try:
                with self._minding_the_disk():
                    self._act_on(message)
            except BaseException:
                for later in messages:  # somebody may wait for an answer
                    self.post(later)
                raise

    def _act_on(self, message: Message) -> None:
        if isinstance(message, Ask):
            self._carry_out(message)
        elif message == "rescan":
            self._scanning.hint()
        elif message == "told":
            self._work.worker.after_move()
            self.tell()
        elif message == "upkeep":
            self._work.worker.after_move()
            self._history.notices.prune()
            self._history.tidy()
            self._upkeep.begin()
            self.tell(log_too=True)
        elif message == "scrub":
            self._scrubbing.hint()
        elif message == "reload":
            self._reload()

    def _carry_out(self, ask: Ask) -> None:
        try:
            if preempts(ask.request, self._history, self._work.on_a_task):
                self._work.abandon()
        finally:
            self._desk.carry_out(ask)
        if isinstance(ask.request, Retry):
            self._rescan()
        if isinstance(ask.request, Fold):  # what lies elsewhere comes first now
            self._scanning.hint()
        self._preparing.give_way()  # the head may be another one; what is there stays there
        if isinstance(ask.request, Rollback):
            self._scrubbing.hint()  # what was trusted is read
        self._work.worker.after_move()
        self.tell(log_too=True)

    def _reload(self) -> None:
        """Read the configuration again; one that cannot be taken whole is told of, and the old one stays."""
        try:
            settings = self.reread()
            merge = self._with_pushing(reopen_merge(self._merge, self.settings, settings, self._history.pins()))
            check_keys(settings)
            self._pushing.take(settings)
        except (MergdError, OSError, sqlite3.Error) as error:
            known = meaning(error)
            why = (
                known if isinstance(known, MergdError) else Unavailable(str(error), "reload again when that is mended")
            )
            log.error("the new configuration is not taken: %s (%s)", why, why.hint)
            self.kept(why)
            if known is not error:  # it is the disk, which is minded
                raise
            return
        self._hooking.take(settings)  # from here on nothing fails
        self._merge, self.settings = merge, settings
        self._work.take_settings(settings, merge)
        self._preparing.again()
        self._desk.hooks, self._desk.keep, self._intake.settings = list(merge.hooks), Keep.of(settings), settings
        log.info("the configuration was read again")
        self.taken(settings)
        self._rescan()

    def _rescan(self) -> None:
        self._scanning.look()
        if self._sources.mark != self._mark:  # it says when to ask again, also after a restart
            self._mark = self._sources.mark
            self._history.pin({"sources": self._mark})
        self.tell()

    # ---------------------------------------------------------------------------------------------------------- work

    def _begin_work(self) -> None:
        """Begin what is next, once nothing is prepared any more; prepare, if nothing is next."""
        if self._preparing.busy:
            if self._work.waits() or self.trouble:
                self._preparing.give_way()
        elif self._work.begin(self._desk.again):
            self.tell()
        elif self.prepares and self.settings.prepare and not self._work.waits() and not self.trouble:
            self._preparing.begin(self._history.head(), self._work.worker.wanted)

    def _look_at_preparing(self) -> None:
        """Show how far it is, and how far what is pushed is."""
        aside = self._preparing.busy or self._pushing.busy
        if self._preparing.take() or (aside and time.monotonic() - self._told_at > TELL_EVERY):
            self.tell()

    def _look_at_work(self) -> None:
        """Show how far the work is; when it has ended, have it made true, or recorded why not."""
        self._show(self._work.progress)
        self._desk.say(str(self._work))
        if not self._work.ended:
            if time.monotonic() - self._told_at > TELL_EVERY:
                self.tell()
            return
        job = self._work.take()
        if isinstance(job, Job):
            self._desk.again.discard(job.checkpoint.id)
            self._intake.leave(self._history.checkpoints.get(job.checkpoint.id))
        self._work.worker.after_move()
        self.tell(log_too=True)
        trim_memory()
