"""The errors, by who can mend them; each carries the exit code of the process that ends with it."""

from .records import Reason


class MergdError(Exception):
    """What mergd raises on purpose: what happened in one line, and a hint that says what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Refused(MergdError):
    """The checkpoint's maker can mend it. It is recorded with its reasons, and the daemon goes on."""

    exit_code = 65

    def __init__(self, *reasons: Reason) -> None:
        super().__init__("; ".join(str(reason) for reason in reasons), reasons[0].next_step)
        self.reasons = reasons


class Unavailable(MergdError):
    """Nobody needs to mend it: wait. It is tried again with backoff."""

    exit_code = 69


class Busy(Unavailable):
    """Somebody else holds what is needed, or it is not complete yet: try again later."""

    exit_code = 75


class DiskFull(Unavailable):
    """There is no room to write. What was to be written waits, and goes on by itself once there is room."""


class DiskFails(Unavailable):
    """The disk under the state takes no writes. That is no fault of a checkpoint: it is tried again."""


class Damaged(MergdError):
    """The disk, or mergd itself, broke what was written. Nothing is written over it; systemd does not restart."""

    exit_code = 74


class DamagedFiles(Damaged):
    """Files of one version are not as they were written. Others may be sound, so that a daemon goes on without these."""

    def __init__(self, message: str, *files: str) -> None:
        super().__init__(message, "see mergd verify; then mergd rollback to a version whose files are whole")
        self.files = files  # within the state


class Uncertain(Damaged):
    """The disk failed while the history was written: what counts is known at the next start, and nothing is done until."""


class NotPermitted(MergdError):
    """The operator can mend it: this user may not do that, or may not read that."""

    exit_code = 77


class Misconfigured(MergdError):
    """The operator can mend it, in the configuration; systemd does not restart."""

    exit_code = 78


class Usage(MergdError):
    """The caller can mend it: the words of the command do not name what they should."""

    exit_code = 2


class Abandoned(Exception):
    """A running fold was told to stop: its draft is dropped and its checkpoint waits again. Never shown to a user."""
