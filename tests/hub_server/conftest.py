"""A Hub with three accounts, and the real client of it."""

from collections.abc import Iterator

import pytest
from fakehub import Account, FakeHub
from support.hub_client import HubClient


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub(page_size=2) as served:
        served.tokens |= {
            "owner": Account("owner", ("org",)),
            "reader": Account("owner", ("org",), write=False),
            "other": Account("other"),
        }
        yield served


@pytest.fixture(scope="module")
def client(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    with HubClient(hub.url, tmp_path_factory.mktemp("client") / "hf") as process:
        yield process


@pytest.fixture(autouse=True)
def afresh(hub: FakeHub) -> None:
    """Nothing on the Hub, nothing wrong."""
    for known in (hub.repositories, hub.renamed, hub.large, hub.faults, hub.asked, hub.requests):
        known.clear()
