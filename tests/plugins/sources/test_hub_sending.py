"""What is sent to the Hub: a file's digest is found once, and two threads may ask for the client at once."""

import hashlib
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub.utils import get_session

from mergd.plugins.sources.hub import client
from mergd.plugins.sources.hub.sending import Addition, Digests, Sent


def test_a_file_is_read_once_for_its_digest_and_again_when_it_is_another(tmp_path: Path) -> None:
    path, digests, reads = tmp_path / "model.safetensors", Digests(), list[int]()

    def stopped() -> bool:
        reads.append(1)
        return False

    def added() -> Addition:
        reads.clear()
        with Sent(path, stopped, digests) as file:
            return Addition(file.named(tmp_path), file)

    for content, expected in ((b"one" * 10, 3), (b"one" * 10, 1), (b"another", 3)):  # the sample alone: one read
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
        info = added().upload_info
        assert (info.sha256, info.size, info.sample) == (hashlib.sha256(content).digest(), len(content), content)
        assert len(reads) == expected


def test_the_digests_that_are_known_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergd.plugins.sources.hub.sending.MOST", 2)
    digests = Digests()
    for name in "abc":
        (tmp_path / name).write_text(name)
        with Sent(tmp_path / name, lambda: False, digests) as file:
            digests.of(file)
    assert len(digests._known) == 2


def test_two_threads_at_once_install_the_bounds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[object] = []
    real = get_session

    def slowly() -> object:
        time.sleep(0.05)
        return real()

    monkeypatch.setattr(client, "get_session", slowly)
    monkeypatch.setattr(client, "set_client_factory", installed.append)
    client._install_once.cache_clear()
    try:
        threads = [threading.Thread(target=client._install) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(installed) == 1
    finally:
        client._install_once.cache_clear()
