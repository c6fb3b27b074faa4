"""Packages of other people, really installed: by pip, as a distribution with entry points, into a folder of their own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from shutil import copytree, rmtree

PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps", "--no-compile")
OWN_BUILD = int(version("setuptools").split(".")[0]) >= 77  # else pip fetches one that knows how


def install(project: Path, site: Path) -> Path:
    """Install a project, of which a copy is built, into the folder `site`; returns that."""
    copied = copytree(project, site.with_name(f"{site.name}-source"))
    words = [sys.executable, *PIP, *(["--no-build-isolation"] if OWN_BUILD else []), "--target", site, copied]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rmtree(copied)
    return site


@contextmanager
def on_the_path(site: Path) -> Iterator[None]:
    """Have what is installed there found, in this process and in the commands that it starts."""
    sys.path.insert(0, str(site))
    try:
        yield
    finally:
        sys.path.remove(str(site))
