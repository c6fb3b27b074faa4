"""The programs that docs/hooks.md shows, each run against a stand-in for what it talks to."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import repository
from support.notices import NOTICE, TOLD
from support.recorder import Recorder, recording

from mergd.plugins.hooks.webhook import signed

PAGE = (repository.ROOT / "docs" / "hooks.md").read_text()
BLOCKS: list[str] = re.findall(r"^```(?:python|sh)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
REFUSED = TOLD | {"kind": "refused", "version": None, "from": None, "to": None, "path": "/watch/a"}
MLFLOW = """
import json, os, types

class MlflowClient:
    def __getattr__(self, name):
        def call(*words, **more):
            with open(os.environ["CALLS"], "a") as file:
                file.write(json.dumps([name, words, more]) + "\\n")
            found = json.loads(os.environ["KNOWN"])
            if name.startswith("search"):
                return [types.SimpleNamespace(**each) for each in found]
            info = types.SimpleNamespace(run_id="r1", artifact_uri="store:/r1")
            return types.SimpleNamespace(info=info, version="5")
        return call
"""


def program(name: str) -> str:
    """Return the program that the page shows under this name."""
    (found,) = [block for block in BLOCKS if f"# /usr/local/lib/mergd/{name}\n" in block]
    return found


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as recorder:
        recorder.answer = lambda post: 200
        yield recorder


def run(text: str, told: dict[str, Any], at: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a program with a notice, with stand-ins for commands and packages in folder `at`."""
    script = at / "program"
    script.write_text(text)
    words = ["/bin/sh"] if text.startswith("#!/bin/sh") else [sys.executable]
    clean = {"PATH": f"{at}:{os.environ['PATH']}", "PYTHONPATH": str(at), **environment}
    return subprocess.run(
        [*words, script], input=json.dumps(told), env=clean, capture_output=True, text=True, check=False
    )


def stand_in(at: Path, code: str) -> Path:
    """Put a `systemctl` into a folder that writes down its words; returns where."""
    (at / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {at}/asked\n{code}\n')
    (at / "systemctl").chmod(0o755)
    (at / "asked").touch()
    return at / "asked"


def test_the_page_has_no_program_that_no_test_runs() -> None:
    names = re.findall(r"^# /usr/local/lib/mergd/(\S+)$", "\n".join(BLOCKS), flags=re.MULTILINE)
    assert sorted(names) == ["follow.sh", "register.py", "restart.py", "sglang.py", "triton.py", "vllm.py"]
    assert len(BLOCKS) == len(names) + 1  # and how a receiver checks a signature


def test_restarting(tmp_path: Path) -> None:
    asked = stand_in(tmp_path, "")
    assert run(program("restart.py"), REFUSED, tmp_path).returncode == 0
    assert asked.read_text() == ""
    assert run(program("restart.py"), TOLD, tmp_path).returncode == 0
    assert asked.read_text() == "restart vllm.service\n"
    stand_in(tmp_path, "exit 1")
    assert run(program("restart.py"), TOLD, tmp_path).returncode != 0


def test_following_the_link_goes_on_until_it_is_where_the_link_leads(tmp_path: Path) -> None:
    link, text = tmp_path / "current", program("follow.sh")
    for place, here in (("/var/lib/mergd/NAME/models/current", link), ("/run/follow-merge", tmp_path / "seen")):
        assert place in text
        text = text.replace(place, str(here))
    link.symlink_to("000001")
    asked = stand_in(tmp_path, f"[ -e {tmp_path}/moved ] || ln -sfn 000002 {link}; touch {tmp_path}/moved")
    assert run(text, {}, tmp_path).returncode == 0
    assert asked.read_text() == "restart vllm.service\n" * 2  # it moved during the first
    assert (tmp_path / "seen").read_text() == "000002\n"
    assert run(text, {}, tmp_path).returncode == 0
    assert len(asked.read_text().splitlines()) == 2
    link.unlink()
    link.symlink_to("000003")
    stand_in(tmp_path, "exit 1")
    assert run(text, {}, tmp_path).returncode == 1
    assert (tmp_path / "seen").read_text() == "000002\n"  # so that it is tried again


def at(recorder: Recorder, name: str, port: int) -> str:
    """Return a program that talks to the recorder."""
    text = program(name)
    assert f"http://127.0.0.1:{port}" in text
    return text.replace(f"http://127.0.0.1:{port}", recorder.url)


def test_vllm_loads_in_place(recorder: Recorder, tmp_path: Path) -> None:
    text = at(recorder, "vllm.py", 8000)
    assert run(text, REFUSED, tmp_path).returncode == 0
    assert recorder.posts == []
    assert run(text, TOLD, tmp_path).returncode == 0
    paths = ["/sleep?level=2", "/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache"]
    assert [post.path for post in recorder.posts] == paths
    assert recorder.posts[2].json == {"method": "reload_weights"}
    recorder.answer = lambda post: 500
    assert run(text, TOLD, tmp_path).returncode != 0


def test_sglang_updates_from_disk(recorder: Recorder, tmp_path: Path) -> None:
    text = at(recorder, "sglang.py", 30000)
    recorder.body = b'{"success": true, "message": ""}'
    assert run(text, REFUSED, tmp_path).returncode == 0
    assert run(text, TOLD, tmp_path).returncode == 0
    (post,) = recorder.posts
    assert (post.path, post.json) == ("/update_weights_from_disk", {"model_path": NOTICE.path})
    recorder.body = b'{"success": false, "message": "no such path"}'
    failed = run(text, TOLD, tmp_path)
    assert (failed.returncode, failed.stderr) == (1, "no such path\n")


def test_triton_loads_again(recorder: Recorder, tmp_path: Path) -> None:
    text = at(recorder, "triton.py", 8000).replace("/srv/triton", str(tmp_path))
    engine = tmp_path / "merged" / "1" / "model.json"
    engine.parent.mkdir(parents=True)
    engine.write_text('{"model": "old", "gpu_memory_utilization": 0.5}')
    assert run(text, REFUSED, tmp_path).returncode == 0
    assert run(text, TOLD, tmp_path).returncode == 0
    assert json.loads(engine.read_text()) == {"model": NOTICE.path, "gpu_memory_utilization": 0.5}
    assert [post.path for post in recorder.posts] == ["/v2/repository/models/merged/load"]


def calls(tmp_path: Path, told: dict[str, Any], known: list[dict[str, Any]]) -> list[list[Any]]:
    """Run the program for MLflow, where these versions are known; returns what it asked the client for."""
    (tmp_path / "mlflow.py").write_text(MLFLOW)
    (tmp_path / "calls").write_text("")
    done = run(program("register.py"), told, tmp_path, CALLS=str(tmp_path / "calls"), KNOWN=json.dumps(known))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    return [call for call in found if not call[0].startswith("search")]


def test_mlflow_registers_each_digest_once(tmp_path: Path) -> None:
    tags = {"mergd.version": "2", "mergd.digest": NOTICE.digest}
    assert calls(tmp_path, REFUSED, []) == []
    assert calls(tmp_path, TOLD, []) == [
        ["create_registered_model", ["merged"], {}],
        ["create_run", ["0"], {}],
        ["log_artifacts", ["r1", NOTICE.path, "model"], {}],
        ["create_model_version", ["merged", "store:/r1/model"], {"run_id": "r1", "tags": tags}],
        ["set_terminated", ["r1"], {}],
        ["set_registered_model_alias", ["merged", "head", "5"], {}],
    ]
    assert calls(tmp_path, TOLD, [{"version": "3", "tags": tags}]) == [
        ["set_registered_model_alias", ["merged", "head", "3"], {}]
    ]


def test_the_receiver_of_the_page_knows_what_is_ours() -> None:
    (text,) = [block for block in BLOCKS if "def is_ours" in block]
    names: dict[str, Any] = {}
    exec(text, names)
    is_ours, now = names["is_ours"], int(time.time())
    headers = signed("id", now, b"body", [b"other", b"key"])
    assert is_ours(headers, b"body", b"key")
    assert not is_ours(headers, b"body!", b"key")
    assert not is_ours(headers, b"body", b"wrong")
    assert not is_ours(headers | {"webhook-id": "another"}, b"body", b"key")
    assert not is_ours(signed("id", now - 3600, b"body", [b"key"]), b"body", b"key")
