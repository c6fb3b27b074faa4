"""The real client of a Hub in a process of its own: it reads its endpoint and its cache from the environment once.

HUB_PYTHON names the interpreter that has the client, so that the same tests run with an older one.
"""

import builtins
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

SETTINGS = {
    "HF_HUB_DISABLE_XET": "1",  # uploads go over plain HTTP
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_ETAG_TIMEOUT": "2",  # seconds of silence
    "HF_HUB_DOWNLOAD_TIMEOUT": "2",
}


def environment(url: str, home: Path) -> dict[str, str]:
    """Return the environment of a process whose Hub is at `url`, with a cache of its own and no token."""
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HUGGING"))}
    kept = {key: value for key, value in kept.items() if not key.lower().endswith("_proxy")}
    return kept | SETTINGS | {"HF_ENDPOINT": url, "HF_HOME": str(home)}


class Failure(Exception):
    """What the client raised: its class, the HTTP status if there was one, and its text."""

    def __init__(self, kind: str, status: int | None, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.status, self.message = kind, status, message


class HubClient:
    """A process that evaluates expressions: the names of huggingface_hub, `api` (an HfApi), and those handed in."""

    def __init__(self, url: str, home: Path) -> None:
        self._process = subprocess.Popen(
            [os.environ.get("HUB_PYTHON", sys.executable), "-P", __file__],
            env=environment(url, home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def __call__(self, expression: str, **names: object) -> Any:
        """Return the value of an expression, or raise a Failure."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([expression, names], default=str) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "failure" in answer:
            raise Failure(**answer["failure"])
        return answer["value"]

    def failure(self, expression: str, **names: object) -> tuple[str, int | None]:
        """Return the class and the status of what the client raises, which it has to."""
        try:
            value = self(expression, **names)
        except Failure as failed:
            return failed.kind, failed.status
        raise AssertionError(f"{expression} returned {value!r}")


def work() -> None:
    """Answer each line; the client's waits between its tries are left out."""
    import huggingface_hub

    time.sleep = lambda seconds: None
    known: dict[str, Any] = {"api": huggingface_hub.HfApi(), "huggingface_hub": huggingface_hub}
    out, sys.stdout = sys.stdout, sys.stderr  # what the client prints is no answer
    for line in sys.stdin:
        expression, names = json.loads(line)
        wanted = {name: getattr(huggingface_hub, name) for name in dir(huggingface_hub) if name in expression}
        try:
            answer = {"value": builtins.eval(expression, known | wanted | names)}
        except Exception as error:  # noqa: BLE001 -- it is told to the test
            status = getattr(getattr(error, "response", None), "status_code", None)
            answer = {"failure": {"kind": type(error).__name__, "status": status, "message": str(error)}}
        print(json.dumps(answer, default=str), file=out, flush=True)


if __name__ == "__main__":
    work()
