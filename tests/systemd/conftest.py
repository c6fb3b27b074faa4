"""The booted machine that the tests of this folder share: one for all of them, because booting takes seconds."""

import os
from collections.abc import Iterator

import pytest
from support.systemd_machine import Machine, booted, why_not


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A machine with mergd, and no merge."""
    if not os.environ.get("TEST_SYSTEMD"):
        pytest.skip("make test-systemd boots a machine for this")
    if why := why_not():
        pytest.skip(why)
    with booted() as made:
        yield made
