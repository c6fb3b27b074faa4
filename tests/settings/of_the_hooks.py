"""What changes with each setting of a table `hook.NAME`; called with a bench of tests/settings/test_every_setting_shows.py."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.merges import Sandbox, make_merge
from support.recorder import recording

from mergd.plugins.programs import Ran, frame_of

Place = Callable[[], Path]


def told_of(place: Path, hook: dict[str, Any]) -> Sandbox:
    """Fold one checkpoint in a merge with this hook, until it was told, or failed."""
    merge = make_merge(place, hook={"deploy": hook})
    merge.drop("a", 1)
    merge.fold_all()
    return merge


def command(place: Place) -> None:
    for words, logged in ((("tee", "/dev/stderr"), '"kind": "fold"'), (("echo", "another"), "another")):
        merge = told_of(place(), {"command": words})
        assert logged in (merge.state / "logs" / "hook-deploy.log").read_text()


def unit(place: Place) -> None:
    root, asked = place(), bytearray()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "unit"))
        server.listen()

        def serve() -> None:
            with server.accept()[0] as connection:
                while piece := connection.recv(1 << 16):
                    asked.extend(piece)
                connection.sendall(frame_of(Ran(0, b"", "")))

        thread = threading.Thread(target=serve)
        thread.start()
        told_of(root / "merge", {"socket": str(root / "unit")})
        thread.join(60)
    assert b'"kind": "fold"' in asked


def url(place: Place) -> None:
    with recording() as one, recording() as other:
        told_of(place(), {"url": one.url})
        assert (one.told(), other.told()) == ([("fold", 1)], [])


def secret(place: Place) -> None:
    root = place()
    (root / "key").write_text("whsec_a2V5\n")
    with recording() as recorder:
        told_of(root / "merge", {"url": recorder.url, "secret": str(root / "key")})
        (post,) = recorder.posts
        assert post.signed_by(b"key")


def retry(place: Place) -> None:
    for length, lost in (("1d", 0), ("0s", 1)):
        merge = told_of(place(), {"command": ["false"], "retry": length})
        assert merge.standing()["deploy"]["undelivered"] == lost


def timeout(place: Place) -> None:
    for length, lost in (("0.3s", 1), ("60s", 0)):
        merge = told_of(place(), {"command": ["sleep", "1"], "timeout": length, "retry": 0})
        assert merge.standing()["deploy"]["undelivered"] == lost


CASES = {
    "hook.NAME.command": command,
    "hook.NAME.socket": unit,
    "hook.NAME.url": url,
    "hook.NAME.secret": secret,
    "hook.NAME.retry": retry,
    "hook.NAME.timeout": timeout,
}
