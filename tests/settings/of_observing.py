"""What changes with each setting of the table `metrics`; called with a bench of tests/settings/test_every_setting_shows.py."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from support.commands import eventually
from support.merges import make_merge, set_in
from support.scraping import Answer, ask, free_port, scrape

Place = Callable[[], Path]


def metrics_file(place: Place) -> None:
    merge = make_merge(place())
    for name in ("one.prom", "other.prom"):
        set_in(merge.config, **{"metrics.file": json.dumps(str(merge.root / name))})
        with merge.running("run"):
            text = eventually(partial(text_of, merge.root / name))
        assert scrape(text).value("mergd_head_version", merge="mergd") == 0


def metrics_listen(place: Place) -> None:
    merge, ports = make_merge(place()), [free_port(), free_port()]
    for port in ports:
        set_in(merge.config, **{"metrics.listen": json.dumps(f"localhost:{port}")})
        with merge.running("run"):
            answer = eventually(partial(answered, port))
            assert (answer.status, answer.text) == (200, "ok\n")
            assert not any(answered(other) for other in ports if other != port)


def text_of(path: Path) -> str:
    """Return what a file holds, once it is there."""
    return path.read_text() if path.exists() else ""


def answered(port: int) -> Answer | None:
    """Return what a healthy daemon answers at a port, if there is one."""
    try:
        answer = ask(port, "/healthz")
    except ConnectionRefusedError:
        return None
    return answer if answer.status == 200 else None


CASES = {"metrics.file": metrics_file, "metrics.listen": metrics_listen}
