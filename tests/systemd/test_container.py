"""The Dockerfile, read: no root, no shell, no secret; and its health check, run. No image is built here."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import repository
from support.command_line import check_command
from support.commands import eventually, start_forking
from support.merges import make_merge

FOLDER = repository.ROOT / "systemd" / "container"
REQUIRED = tomllib.loads((repository.ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="session", autouse=True)
def _forking() -> None:
    start_forking()


def instructions() -> Iterator[tuple[str, str]]:
    """Yield each instruction with its words."""
    text = re.sub(r"\\\n\s*", "", (FOLDER / "Dockerfile").read_text())
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, rest


def words_of(name: str) -> list[list[str]]:
    """Return the lists of words of an instruction: in the form that no shell reads."""
    lists = [json.loads(rest[rest.index("[") :]) for found, rest in instructions() if found == name]
    assert lists
    return lists


def last_stage() -> list[tuple[str, str]]:
    found = list(instructions())
    return found[max(i for i, (name, _) in enumerate(found) if name == "FROM") :]


def test_it_runs_as_nobody_special_from_its_last_stage_on() -> None:
    stage = last_stage()
    (user,) = [rest for name, rest in stage if name == "USER"]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    names = [name for name, _ in stage]
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])
    (folder,) = [words for words in words_of("RUN") if words[0] == "install"]
    assert f"{folder[folder.index('-o') + 1]}:{folder[folder.index('-g') + 1]}" == user
    assert [folder[-1]] in words_of("VOLUME")


def test_its_base_is_pinned_and_fits_what_mergd_needs() -> None:
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    versions = {re.fullmatch(r"python:3\.(\d+)-slim-\w+", base) for base in bases}
    assert all(found is not None and int(found[1]) >= 11 for found in versions)
    assert len(set(bases)) == 1, "the environment of the first stage runs by the second one's interpreter"


def test_torch_comes_from_the_index_of_cpu_builds_as_mergd_states_it() -> None:
    installs = [words for words in words_of("RUN") if "pip" in words[0]]
    (torch,) = [words for words in installs if "--index-url" in words]
    assert torch[torch.index("--index-url") + 1].endswith("/whl/cpu")
    assert torch[-1] in REQUIRED["dependencies"]
    assert installs.index(torch) < len(installs) - 1, "mergd comes after it, or pip fetches the one for GPUs"


def test_no_instruction_takes_a_shell_or_a_secret() -> None:
    for name, rest in instructions():
        assert name not in ("ARG", "ADD")
        assert name not in ("RUN", "CMD", "ENTRYPOINT") or rest.startswith("[")
        assert not re.search(r"token|secret|password|key", rest, re.IGNORECASE)


def test_what_is_copied_is_what_the_package_is_made_from() -> None:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    assert all((repository.ROOT / name).exists() for name in let_in)
    assert let_in >= {path.parts[0] for path in repository.module_files()}
    assert let_in >= {"pyproject.toml", "docs/man", *REQUIRED["license-files"], REQUIRED["readme"]}


def test_it_stops_and_starts_as_the_service_does() -> None:
    found = dict(instructions())
    assert found["STOPSIGNAL"] == "SIGTERM"
    (entry,), (command,) = words_of("ENTRYPOINT"), words_of("CMD")
    assert entry == ["mergd"]
    check_command(" ".join(command))
    environment = dict(pair.split("=", 1) for name, rest in instructions() if name == "ENV" for pair in rest.split())
    assert Path(environment["MERGD_CONFIG"]).parent == Path(found["WORKDIR"])
    assert environment["PATH"].startswith("/opt/mergd/bin:")


def test_its_health_is_that_a_daemon_runs_and_nothing_is_in_its_way(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, rescan=0.2)
    (program, *words) = json.loads(dict(instructions())["HEALTHCHECK"].partition("CMD ")[2])
    assert program == "mergd"
    assert merge.mergd(*words).code == 1
    with merge.running("run"):
        eventually(lambda: merge.mergd(*words).code == 0)
        merge.watch.rename(merge.root / "aside")
        eventually(lambda: merge.mergd(*words).code == 1)
