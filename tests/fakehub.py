"""The Hub on the loopback, by its short name: `from fakehub import FakeHub`."""

from hub_server.faults import (
    Before,
    Drip,
    Elsewhere,
    Fault,
    Flipped,
    Length,
    Reset,
    Silence,
    Status,
    Truncated,
    too_many,
)
from hub_server.hub import FakeHub
from hub_server.messages import Request
from hub_server.repositories import Account, Repository
from hub_server.wire import Cdn

__all__ = [
    "Account",
    "Before",
    "Cdn",
    "Drip",
    "Elsewhere",
    "FakeHub",
    "Fault",
    "Flipped",
    "Length",
    "Repository",
    "Request",
    "Reset",
    "Silence",
    "Status",
    "Truncated",
    "too_many",
]
