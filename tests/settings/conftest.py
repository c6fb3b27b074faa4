"""The process that commands are forked from starts before the first test; somebody else's plugins, found as installed."""

import tomllib
from pathlib import Path

import pytest
import repository
from support.commands import start_forking


@pytest.fixture(scope="session", autouse=True)
def _forking() -> None:
    start_forking()


@pytest.fixture
def their_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the plugins of tests/third_party found as if they were installed; returns the file of their hook's news."""
    project = tomllib.loads((repository.ROOT / "tests" / "third_party" / "pyproject.toml").read_text())["project"]
    made = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = third_party.{place}" for name, place in points.items()))
    ]
    (made / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(made.parent)
    news = tmp_path / "news"
    news.touch()
    monkeypatch.setenv("THEIR_NEWS", str(news))
    return news
