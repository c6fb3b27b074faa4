"""The sidecar: what it may say, and that no text in it, however it was made, does more than have a person look at it."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mergd.daemon.settings import Settings
from mergd.daemon.sidecar import LARGEST, counted

PLACES = {"base_model": "org/name", "watch": "/watch", "state": "/state"}
TRUSTED = Settings.model_validate(PLACES | {"trust_sidecar": True, "share": 1.5})


def written(folder: Path, text: str | bytes) -> Path:
    """Return a checkpoint's folder with this sidecar."""
    data = text.encode() if isinstance(text, str) else text
    (folder / "checkpoint.toml").write_bytes(data)
    return folder


GOOD: dict[str, float] = {
    "share = 2.0": 2.0,
    "weight = 2.0": 2.0,
    "share = 3": 3.0,
    "share = 0.1": 0.1,
    "share = 1e-300": 0.1,
    "share = 10.5": 10.0,
    f"share = 1{'0' * 300}": 10.0,
    "": 1.5,
    "# share = 2.0": 1.5,
    "name = 'mine'\nweight = 2\n[training]\nshare = 7": 2.0,
    "[training]\nshare = 7": 1.5,
}


@pytest.mark.parametrize("text", GOOD)
def test_what_it_says_counts_within_bounds(tmp_path: Path, text: str) -> None:
    found = counted(written(tmp_path, text), TRUSTED)
    assert (found.share, found.doubt) == (GOOD[text], None)


def test_what_was_brought_within_bounds_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counted(written(tmp_path, "share = 5"), TRUSTED)
    assert not caplog.records
    counted(written(tmp_path, "share = 50"), TRUSTED)
    assert f"{tmp_path.name} counts 10: its sidecar says 50" in caplog.text


BAD: dict[str, str | bytes] = {
    "zero": "share = 0",
    "less": "share = -2.0",
    "not a number": "share = nan",
    "without end": "share = inf",
    "too large for a float": f"share = 1{'0' * 400}",
    "true": "share = true",
    "a text": "share = '2.0'",
    "a list": "share = [2.0]",
    "a table": "[share]\nvalue = 2.0",
    "a day": "weight = 2026-01-01",
    "both words": "share = 2.0\nweight = 2.0",
    "twice": "share = 2.0\nshare = 2.0",
    "no TOML": "share: 2.0",
    "no text": b"\xff\xfe\x00share",
    "a NUL": b"share = 2.0\n\x00",
    "deep": "share = " + "[" * (LARGEST - 10),
    "deep and whole": "share = " + "[" * 1500 + "]" * 1500,
    "deep names": "a." * 1500 + "b = 1\nshare = -1",
    "too large": "share = 2.0\n#" + "x" * LARGEST,
}


@pytest.mark.parametrize("name", BAD)
def test_what_nobody_understands_is_for_a_person(tmp_path: Path, name: str) -> None:
    found = counted(written(tmp_path, BAD[name]), TRUSTED)
    assert found.share == 1.5
    assert found.doubt is not None
    assert found.doubt.code == "sidecar"
    assert found.doubt.found.startswith("checkpoint.toml: ")
    assert found.doubt.found.isprintable()
    assert len(found.doubt.found) < 1000


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nowhere", "link round", "link to elsewhere"])
def test_so_is_what_is_no_file_of_its_folder(tmp_path: Path, kind: str) -> None:
    place, path = tmp_path / "place", tmp_path / "place" / "checkpoint.toml"
    place.mkdir()
    written(tmp_path, "share = 2.0")
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link to nowhere":
            path.symlink_to("nothing")
        case "link round":
            path.symlink_to("checkpoint.toml")
        case _:
            path.symlink_to(tmp_path / "checkpoint.toml")
    found = counted(place, TRUSTED)
    assert found.share == 1.5
    assert found.doubt is not None


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("share = 2.0")
    (tmp_path / "checkpoint.toml").symlink_to("other.toml")
    assert counted(tmp_path, TRUSTED).share == 2.0


def test_without_trust_it_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "checkpoint.toml")
    found = counted(tmp_path, TRUSTED.model_copy(update={"trust_sidecar": False}))
    assert (found.share, found.doubt) == (1.5, None)


def test_a_lone_file_has_none(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").touch()
    written(tmp_path, "share = 2.0")
    assert counted(tmp_path / "x.safetensors", TRUSTED).share == 1.5


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: f"share = {text}".encode()))
@example(b"share = 0x10")
def test_any_bytes_give_a_share_within_bounds(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    found = counted(written(tmp_path_factory.mktemp("sidecar"), data), TRUSTED)
    assert found.share == 1.5 if found.doubt else 0.1 <= found.share <= 10.0
