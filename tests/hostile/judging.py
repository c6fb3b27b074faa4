"""The verdict of the real admission on one place after another, each in a process of its own that may take so much more.

python -m hostile.judging (in tests/, or `make hostile`) judges the whole corpus and prints what it cost.
"""

import gc
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from hostile.corpus import CORPUS
from support.models import save_model, tiny_base

from mergd.daemon.admission import Admission
from mergd.daemon.base import Base
from mergd.daemon.base import examine as examine_base
from mergd.daemon.progress import Progress
from mergd.daemon.settings import Settings
from mergd.plugins.sources.directory import Directory
from mergd.state.errors import Busy

SETTINGS = Settings(base_model="base", watch=Path("watch"), state=Path("state"))
LIMIT = 200 * 2**20  # bytes above what the idle process has
SECONDS = 20  # of processor time, a wide margin: a case that never ends must end


def judge_all(root: Path, target: Path) -> None:
    """Write to `target`, as JSON, what became of each place in root/watch: verdict, reasons, seconds and bytes."""
    base = examine_base(save_model(root / "base", tiny_base()), Progress())
    judge(root / "base", base)  # what is imported at the first use is no case's
    gc.freeze()  # else each child's collection of garbage copies all pages of the parent's objects
    places = sorted((root / "watch").iterdir())
    target.write_text(json.dumps({place.name: _apart(place, base) for place in places}))


def judge(place: Path, base: Base) -> dict[str, Any]:
    """Return the verdict on one place, as `mergd check` gives it, and what it cost."""
    before = _status("VmRSS")
    started = time.process_time()
    decision, reasons = _verdict(place, base)
    seconds = time.process_time() - started
    return {"decision": decision, "reasons": reasons, "seconds": seconds, "bytes": _status("VmHWM") - before}


def _verdict(place: Path, base: Base) -> tuple[str, list[str]]:
    try:
        sighting = Directory(place.parent).sight(place)
        assert sighting is not None
        _, verdict = Admission(base, SETTINGS).examine(sighting)
    except Busy as error:
        return "incomplete", [str(error)]
    except BaseException as error:  # noqa: BLE001 - whatever else it is, it is a crash
        return "crash", [repr(error)]
    return verdict.decision, [str(reason) for reason in verdict.reasons]


def _apart(place: Path, base: Base) -> dict[str, Any]:
    """Judge in a child, within the limits of memory and time; how it died is its verdict, if it dies."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + LIMIT,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS,) * 2)
            os.write(writes, json.dumps(judge(place, base)).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with open(reads, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(told) if told else {"decision": f"died ({status})", "reasons": [], "seconds": 0.0, "bytes": 0}


def make_all(root: Path) -> None:
    """Make every place of the corpus in root/watch, by its number."""
    (root / "watch").mkdir()
    for k, recipe in enumerate(CORPUS):
        recipe.make(root / "watch" / f"{k:03d}")


def main() -> None:
    """Judge the corpus; exit 1 if a verdict is not the expected one."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_all(root)
        judge_all(root, root / "judged.json")
        found = json.loads((root / "judged.json").read_text())
    judged = {recipe: found[f"{k:03d}"] for k, recipe in enumerate(CORPUS)}
    for key, unit in (("seconds", 1.0), ("bytes", 2.0**20)):
        worst = sorted(judged, key=lambda recipe: judged[recipe][key], reverse=True)[:3]
        print(f"most {key}:", *(f"{recipe.name} {judged[recipe][key] / unit:.2f}" for recipe in worst), sep="\n  ")
    wrong = [recipe.name for recipe in CORPUS if judged[recipe]["decision"] != recipe.expected]
    counts = {
        decision: sum(r.expected == decision for r in CORPUS) for decision in ("admitted", "refused", "incomplete")
    }
    print(f"{len(CORPUS)} places, {counts}, wrong: {wrong}")
    raise SystemExit(bool(wrong))


def _status(key: str) -> int:
    """Return one of this process's sizes in bytes, from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
