"""Publishing: base + scale x read-out, cast once, as an ordinary model folder whose other files are the base's."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..plugins.rules._sums import finite
from ..state.digests import digest_of
from ..state.errors import Refused
from ..state.linking import Linking
from ..state.reading import Reader
from ..state.records import FileDigest, Readout, Reason, Weight
from ..state.store import PUBLIC, PUBLIC_FILE, Draft, write_file
from ..state.writing import Planned, Writer
from .base import COPIES, Base, float32_bytes, row_blocks
from .blocks import LARGEST, UNDER_WAY
from .method import EVEN, Lines, Method
from .overlapping import Job, overlapped
from .progress import Progress
from .settings import Settings
from .slots import read_tensor, reads_slot

# Bytes, from which on untouched weights are published apart, and a side file is linked: what is damaged in a linked file is
# damaged in every version that has it.
ENOUGH = 2**20
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".npz",
           ".onnx_data", ".tflite", ".mlmodel", ".safetensors.index.json", ".bin.index.json", ".h5.index.json")  # fmt: skip
NOT_COPIED = ("readme", "mergd_manifest", ".git", "trainer_state.json", "training_args")  # by how the name begins
CODE = (".py", ".pyc", ".so")
OUT_DTYPE = {"base": None, "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
CONFIG_DTYPE = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Published:
    """The files of a model folder, and what writing it cost."""

    files: list[FileDigest]
    untouched: list[str]  # the names of those whose weights are all the base model's
    bytes_read: int
    bytes_written: int
    shard_size: int  # bytes; another one gives other files


def publish(
    base: Base,
    readouts: Mapping[str, Readout],
    scale: float,
    draft: Draft,
    settings: Settings,
    progress: Progress,
    linking: Linking,
    lines: Lines = EVEN,
) -> Published:
    """Write the draft's model folder, base + scale x `lines` at its depth x read-out, or link what the parent's has already.

    Raises Refused where a finite weight does not fit into `out_dtype`, Abandoned on request.
    """
    out_dtype = OUT_DTYPE[settings.out_dtype]
    with ExitStack() as stack:
        source = stack.enter_context(Reader(base.layout))
        opened = _Readouts(readouts, stack)
        planned = _set_apart(plan(base, out_dtype), base, opened)
        writer = stack.enter_context(
            Writer(draft.model, "model", planned, {"format": "pt"}, settings.shard_size, mode=PUBLIC_FILE)
        )
        writer.adopt(linking.untouched)
        order = writer.order
        progress.begin("publishing", len(order), sum(base.layout.tensors[name].nbytes for name in order))
        merging = _Merging(base, source, opened, writer, scale, lines, progress)
        merged = overlapped(_jobs(base, order, settings.buffers), merging.load, settings.buffers, settings.threads)
        with merged as blocks:
            for job, block in blocks:
                with progress.busy("publish"):
                    writer.write(job.weight.name, block)
                progress.advance(block.numel() * block.element_size())
                progress.weights += job.last
        with progress.busy("sync"):
            layout = writer.finish()
        files = [*writer.files]
        read, written = source.nbytes + opened.nbytes, writer.nbytes
    if len(files) > 1:
        index = {
            "metadata": {"total_size": layout.nbytes},
            "weight_map": {name: Path(info.file).name for name, info in layout.tensors.items()},
        }
        files.append(_write_json(draft.model / "model.safetensors.index.json", index))
    files += _copy_side_files(base, draft.model, out_dtype, settings.copy_code, linking)
    progress.end()
    return Published(files, writer.apart, read, written, int(settings.shard_size))


def _jobs(base: Base, names: Iterable[str], memory: int) -> Iterator[Job]:
    """Yield the blocks of rows that tensors are published by, in order."""
    for name in names:
        info = base.layout.tensors[name]
        alive = max(info.nbytes, float32_bytes(info.shape))
        blocks = row_blocks(info.shape, alive, min(memory // UNDER_WAY, LARGEST))
        for number, rows in enumerate(blocks, start=1):
            share = (rows[1] - rows[0]) / info.shape[0] if rows else 1.0
            weight = Weight(name, info.shape, "other")
            yield Job(weight, rows, int(COPIES * alive * share) // 2, last=number == len(blocks))


class _Merging:
    """Reads a block of the base's weight and of its read-out, and merges them; of what was not touched, the base's own."""

    def __init__(
        self,
        base: Base,
        source: Reader,
        readouts: "_Readouts",
        writer: Writer,
        scale: float,
        lines: Lines,
        progress: Progress,
    ) -> None:
        self._base, self._source, self._readouts, self._writer = base, source, readouts, writer
        self._scale, self._lines, self._progress = scale, lines, progress

    def load(self, job: Job) -> Callable[[], Tensor]:
        """Read what a job needs; what it returns gives the block as it is written."""
        name = job.weight.name
        folded = self._base.tied.get(name, name)
        with self._progress.busy("publish"):
            theta0 = self._source.read(name, job.rows)
            readout = self._readouts.read(folded, job.rows) if folded in self._readouts else None
        return partial(self._merged, name, folded, theta0, readout)

    def _merged(self, name: str, folded: str, theta0: Tensor, readout: Tensor | None) -> Tensor:
        with self._progress.busy("publish"):
            factor = self._scale * self._lines.at(self._base.depths.get(folded, 0.0))
            block = theta0 if readout is None else merge(theta0, readout, factor)
            block = block.to(self._writer.dtype_of(name))
            if folded in self._base.by_name:
                _check_fits(name, block)
            return block


def merge(theta0: Tensor, readout: Tensor, scale: float) -> Tensor:
    """Return base + scale x read-out, in float32, or float64 where either is."""
    dtype = torch.float64 if torch.float64 in (theta0.dtype, readout.dtype) else torch.float32
    return torch.add(theta0.to(dtype), readout.to(dtype), alpha=scale)


class _Readouts:
    """The read-outs that are not zero, each in the file where folding left it; shared files are opened once."""

    def __init__(self, readouts: Mapping[str, Readout], stack: ExitStack) -> None:
        self._readouts = {name: readout for name, readout in readouts.items() if not readout.zero}
        self._stack = stack
        self._readers: dict[tuple[str, ...], Reader] = {}
        self._once = 0  # bytes read from files that are closed again

    def __contains__(self, name: str) -> bool:
        return name in self._readouts

    def read(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        readout = self._readouts[name]
        if len(readout.layout.tensors) == 1:  # spilled: a file of its own
            with Reader(readout.layout) as reader:
                block = read_tensor(reader, readout.name, rows)
            self._once += reader.nbytes
            return block
        files = readout.layout.files
        if files not in self._readers:
            self._readers[files] = self._stack.enter_context(Reader(readout.layout))
        return read_tensor(self._readers[files], readout.name, rows)

    @property
    def nbytes(self) -> int:
        return self._once + sum(reader.nbytes for reader in self._readers.values())


def plan(base: Base, out_dtype: str | None) -> list[Planned]:
    """Return the tensors of a published model, in the base's order; only what is folded gets another dtype."""
    fixed = set(base.fixed)
    return [
        Planned(name, info.dtype if out_dtype is None or name in fixed else out_dtype, info.shape)
        for name, info in base.layout.tensors.items()
    ]


def _set_apart(planned: list[Planned], base: Base, readouts: "_Readouts") -> list[Planned]:
    """Set weights apart that no checkpoint touched, if it pays: their bytes are the same in the next version."""
    apart = [replace(tensor, apart=base.tied.get(tensor.name, tensor.name) not in readouts) for tensor in planned]
    return apart if sum(tensor.nbytes for tensor in apart if tensor.apart) >= ENOUGH else planned


def _check_fits(name: str, block: Tensor) -> None:
    if not finite(block):
        found = f"{name} is beyond {block.dtype} after merging"
        raise Refused(
            Reason("overflow", found, "weights that fit the published dtype", "set out_dtype to bfloat16 at init")
        )


# ---------------------------------------------------------------------------------------------------------- side files


def side_files(base: Base, copy_code: bool) -> Iterator[Path]:
    """Return the files of the base's folder that are published beside the weights, relative to it, sorted."""
    if base.folder is None:
        return
    for at, folders, names in os.walk(base.folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not _left_out(name, copy_code):
                yield (Path(at) / name).relative_to(base.folder)


def _left_out(name: str, copy_code: bool) -> bool:
    low = name.lower()
    return low.endswith(WEIGHTS) or low.startswith((".", *NOT_COPIED)) or (low.endswith(CODE) and not copy_code)


def _copy_side_files(
    base: Base, target: Path, out_dtype: str | None, copy_code: bool, linking: Linking
) -> list[FileDigest]:
    """Copy what is small and no weight; config.json is kept true to what was written, and names no code."""
    digests = []
    for path in side_files(base, copy_code):
        source = Path(base.folder or "") / path
        _public_folder(target, path.parent)
        data = source.read_bytes()
        if path.suffix == ".json":
            data = _without_code(data, copy_code)
        if str(path) == "config.json":
            data = _true_config(data, base, out_dtype)
        digests.append(FileDigest(str(path), len(data), digest_of(data)))
        if len(data) < ENOUGH or not linking.same(digests[-1], target / path):
            write_file(target / path, data, PUBLIC_FILE)
    return digests


def _public_folder(target: Path, inside: Path) -> None:
    """Make a folder within the model, and those above it, readable by others whatever the umask."""
    for folder in (target / part for part in reversed([inside, *inside.parents])):
        folder.mkdir(exist_ok=True)
        folder.chmod(PUBLIC)


def _without_code(data: bytes, copy_code: bool) -> bytes:
    """Return a JSON file without any `auto_map`, which makes a loader run code; untouched where there is none."""
    if copy_code or b"auto_map" not in data:
        return data
    try:
        value = json.loads(data)
    except ValueError:
        return data
    return _json(_stripped(value))


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stripped(part) for key, part in value.items() if key != "auto_map"}
    return [_stripped(part) for part in value] if isinstance(value, list) else value


def _true_config(data: bytes, base: Base, out_dtype: str | None) -> bytes:
    """Return config.json with the dtype that was written, and tied only where that is what was written."""
    config: dict[str, Any] = json.loads(data)
    true = config
    if out_dtype is not None:
        keys = [key for key in ("torch_dtype", "dtype") if key in config] or ["dtype"]
        true = true | dict.fromkeys(keys, CONFIG_DTYPE[out_dtype])
    if base.untied:
        true = _with_every(true, "tie_word_embeddings", False)
    return data if true == config else _json(true)


def _with_every(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a configuration with a key set wherever it is, also in the configurations that it nests."""
    inner = {k: _with_every(v, key, value) if isinstance(v, dict) else v for k, v in config.items()}
    return inner | ({key: value} if key in config else {})


def _write_json(path: Path, value: Any) -> FileDigest:
    return write_file(path, _json(value), PUBLIC_FILE)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


# ------------------------------------------------------------------------------------------------ the need of the disk


def version_bytes(base: Base, method: Method, out_dtype: str, copy_code: bool) -> int:
    """Return what one version takes on disk, in bytes: slots, published weights, and the files beside them."""
    return slots_bytes(base, method) + model_bytes(base, out_dtype, copy_code)


def model_bytes(base: Base, out_dtype: str, copy_code: bool) -> int:
    """Return what a published model folder takes, in bytes."""
    beside = sum((Path(base.folder or "") / path).stat().st_size for path in side_files(base, copy_code))
    return sum(tensor.nbytes for tensor in plan(base, OUT_DTYPE[out_dtype])) + beside


def slots_bytes(base: Base, method: Method) -> int:
    """Return what the slots of one version take, in bytes."""
    return sum(spec.nbytes for w in base.weights for s in method.keeps(w) for spec in s.slots(w).values())


def spilled_bytes(base: Base, method: Method) -> int:
    """Return what a draft takes besides, in bytes: the read-outs that are no slot, in float32."""
    return sum(float32_bytes(w.shape) for w in base.weights if not reads_slot(method, w))
