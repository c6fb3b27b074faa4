"""The repository itself, for tests that look at it: its root and its files."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_PACKAGED = ("tests", "docs", "benchmarks", ".types", ".ci")  # folders that no wheel carries
MADE = ("build", "dist", "__pycache__")  # by tools, here and not in the repository


def files() -> list[Path]:
    """Return the repository's files, relative to its root: what git tracks, or would if it were added."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy without its history
        return sorted(_walk(ROOT))
    return sorted({Path(name) for name in listed if name and (ROOT / name).is_file()})


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in MADE or (path.name.startswith(".") and path.name not in (*NOT_PACKAGED, ".gitignore")):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif path.is_file():
            yield path.relative_to(ROOT)


def module_files() -> list[Path]:
    """Return the Python files of the package `mergd`."""
    return [path for path in files() if path.suffix == ".py" and path.parts[0] not in NOT_PACKAGED]


def texts() -> Iterator[tuple[Path, str]]:
    """Yield each file that is text, with its text."""
    for path in files():
        try:
            yield path, (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
