"""What every format must keep to: subclass FormatContract and say how a checkpoint of that kind is written."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.models import Model, tiny_base

from mergd.plugins.formats.interface import Contents, Format
from mergd.plugins.registry import load, names
from mergd.state.errors import Busy, NotPermitted, Refused
from mergd.state.reading import Reader


class FormatContract:
    """The cases; none may be skipped."""

    @pytest.fixture
    def form(self) -> Format:
        raise NotImplementedError

    def write(self, folder: Path, model: Model) -> Path:
        """Write a checkpoint of this kind into a folder, and return its place."""
        raise NotImplementedError

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        return self.write(tmp_path, tiny_base())

    def files(self, place: Path) -> Iterator[Path]:
        """Return the files of a checkpoint that hold tensors or name them."""
        paths = sorted(place.rglob("*")) if place.is_dir() else [place]
        return (path for path in paths if "safetensors" in path.name)

    def test_it_recognises_its_kind_by_names_alone(self, form: Format, place: Path) -> None:
        assert form.recognises(place)
        for file in self.files(place):
            file.write_bytes(b"")
        assert form.recognises(place)

    def test_it_does_not_recognise_what_is_not_there(self, form: Format, tmp_path: Path) -> None:
        assert not form.recognises(tmp_path / "nothing")
        (tmp_path / "notes.txt").touch()
        assert not form.recognises(tmp_path / "notes.txt")
        assert not form.recognises(Path("/dev/null"))

    def test_it_is_one_of_those_that_are_installed(self, form: Format) -> None:
        assert type(form) in [load("formats", name) for name in names("formats")]

    def test_no_other_installed_format_recognises_the_same(self, form: Format, place: Path) -> None:
        forms = [load("formats", name)() for name in names("formats")]
        assert [type(other) for other in forms if other.recognises(place)] == [type(form)]

    def test_the_layout_leads_to_the_very_bytes(self, form: Format, place: Path) -> None:
        layout = form.contents(place).layout
        assert layout.tensors.keys() == tiny_base().keys()
        with Reader(layout) as reader:
            assert all(torch.equal(reader.read(name), tensor) for name, tensor in tiny_base().items())

    def test_the_layout_names_every_file_that_it_uses(self, form: Format, place: Path) -> None:
        layout = form.contents(place).layout
        assert {info.file for info in layout.tensors.values()} == set(layout.files)
        assert all(Path(file).is_absolute() and Path(file).is_file() for file in layout.files)

    def test_nothing_is_written_and_nothing_stays_open(self, form: Format, place: Path) -> None:
        before = [(path, path.stat().st_mtime_ns) for path in self.files(place)]
        assert form.contents(place) == form.contents(place)
        assert [(path, path.stat().st_mtime_ns) for path in self.files(place)] == before

    def test_only_headers_are_read(self, form: Format, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read = 0
        real = os.pread

        def counted(fd: int, length: int, offset: int) -> bytes:
            nonlocal read
            data = real(fd, length, offset)
            read += len(data)
            return data

        monkeypatch.setattr(os, "pread", counted)
        headers = sum(
            int.from_bytes(Path(file).read_bytes()[:8], "little") + 8 for file in form.contents(place).layout.files
        )
        read = 0
        form.contents(place)
        assert read <= headers

    def test_while_a_file_is_written_it_is_waited_for(self, form: Format, place: Path) -> None:
        file = next(file for file in self.files(place) if file.suffix == ".safetensors")
        data = file.read_bytes()
        for size in (0, 7, 8, 50, len(data) - 1):
            file.write_bytes(data[:size])
            with pytest.raises(Busy):
                form.contents(place)
        file.write_bytes(data)
        assert isinstance(form.contents(place), Contents)

    def test_while_a_file_is_missing_it_is_waited_for(self, form: Format, place: Path) -> None:
        for file in [file for file in self.files(place) if file.suffix == ".safetensors"]:
            data = file.read_bytes()
            file.unlink()
            with pytest.raises(Busy):
                form.contents(place)
            file.write_bytes(data)

    @pytest.mark.parametrize("garbage", [b"\xff" * 99, b"\x02" + bytes(7) + b"[]", b"\x08" + bytes(7) + b"{'a': 1}"])
    def test_what_no_waiting_mends_is_refused_with_a_way_out(self, form: Format, place: Path, garbage: bytes) -> None:
        next(file for file in self.files(place) if file.suffix == ".safetensors").write_bytes(garbage)
        with pytest.raises(Refused) as raised:
            form.contents(place)
        assert all(reason.found and reason.expected and reason.next_step for reason in raised.value.reasons)

    def test_a_pipe_blocks_nobody(self, form: Format, place: Path) -> None:
        file = next(file for file in self.files(place) if file.suffix == ".safetensors")
        file.unlink()
        os.mkfifo(file)
        with pytest.raises((Refused, Busy)):
            form.contents(place)

    def test_what_may_not_be_read_is_not_permitted(
        self, form: Format, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.open

        def not_permitted(path: str | Path, *arguments: int, **options: int) -> int:
            if str(path).endswith(".safetensors"):
                raise PermissionError(13, "Permission denied", path)
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, "open", not_permitted)
        with pytest.raises(NotPermitted):
            form.contents(place)
