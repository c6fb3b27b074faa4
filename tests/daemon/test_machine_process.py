"""What a process asks of the machine, and may be refused."""

import os
import threading

import pytest

from mergd.daemon.machine import be_last


def test_a_thread_whose_priority_may_not_be_changed_works_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refused(which: int, who: int, priority: int) -> None:
        asked.append((who, priority))
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refused)
    be_last()
    assert asked == [(threading.get_native_id(), 19)]
