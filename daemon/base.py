"""The base model: where it lies, which of its tensors are folded and how, and what its folder carries besides weights."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..plugins.formats.interface import Contents, Format
from ..plugins.registry import load, names
from ..plugins.rules._sums import square
from ..state.errors import Busy, Misconfigured, NotPermitted, Refused, Unavailable
from ..state.headers import FLOATING, MAX_TENSORS, owner_of
from ..state.reading import TORCH_DTYPE, ContentDigest, Reader
from ..state.records import Layout, Reason, TensorInfo, Weight, WeightKind
from ..state.wording import shown
from .depth import depths
from .progress import Progress

# A lookup table is read row by row: its rows are no directions of a linear map. Known by name, as mergd knows no classes.
LOOKUP = re.compile(
    r"(?!patch).*embed(ding|der)?s?|emb|.*_emb|wte|wpe|shared|embed_(tokens|positions|in)(_.*)?|relative_(attention|position)_bias(_table)?|rel_pos_[hw]"
    r"|lookup(_table)?|codebook|.*_tokens?"
)
CONVOLUTION = re.compile(r"(^|[._])conv", re.IGNORECASE)
RUNNING_STATISTICS = re.compile(r"(^|\.)running_(mean|var)$")  # of the data, not weights: they are the base's
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|output_projection|decoder|proj_out)(\.weight)?$")
HEAD_OF_TIED = re.compile(r"head|output|decoder|proj", re.IGNORECASE)
COPIES = 12  # float32 blocks of a weight that are alive at once, at most
Rows = tuple[int, int] | None  # first and last (exclusive) of a block; None is the whole weight
READING = 64 * 2**20  # bytes of working buffers while the base model is read whole


@dataclass(frozen=True)
class Base:
    """The base model, resolved: fixed for the life of a state directory."""

    folder: Path | None  # None if it is a lone file
    layout: Layout
    weights: tuple[Weight, ...]  # what is folded, in file order; a tied weight once
    tied: Mapping[str, str]  # second name -> the name of the weight that it shares
    digest: str  # of its content
    norms: Mapping[str, float]  # Frobenius norm of each weight
    commit: str | None = None  # of its repository, if it is one

    @property
    def path(self) -> str:
        """Where it lies: a folder, or a lone file."""
        return str(self.folder or self.layout.files[0])

    @cached_property
    def by_name(self) -> Mapping[str, Weight]:
        """The weights that are folded."""
        return {weight.name: weight for weight in self.weights}

    @cached_property
    def untied(self) -> bool:
        """Whether config.json calls embeddings tied that are stored as two weights, with bytes of their own."""
        pairs = ((head, table) for head, table in _pairs(self.layout) if HEAD.search(head.name))
        own = any(table.shape[0] == self.vocabulary for _, table in pairs)
        return tie_setting(self.config) is True and not self.tied and own

    def turned(self, name: str) -> bool | None:
        """Whether a linear map is stored as (in, out), as the biases of others show: those called alike, else all.

        None where they show nothing, or not the same.
        """
        alike = {turned for other, turned in self._turned.items() if _leaf(other) == _leaf(name)}
        shown = alike or set(self._turned.values())
        return next(iter(shown)) if len(shown) == 1 else None

    @cached_property
    def _turned(self) -> Mapping[str, bool]:
        """Return for each linear map that is not square, and has a bias, whether it is stored as (in, out)."""
        maps = (
            (w, self.by_name.get(w.name.removesuffix("weight") + "bias")) for w in self.weights if len(w.shape) == 2
        )
        oblong = ((w, bias) for w, bias in maps if bias is not None and w.shape[0] != w.shape[1])
        return {w.name: bias.shape == w.shape[1:] for w, bias in oblong if bias.shape in (w.shape[:1], w.shape[1:])}

    @cached_property
    def depths(self) -> Mapping[str, float]:
        """How deep in the network each weight lies, from 0 to 1."""
        return depths(self.weights)

    @cached_property
    def vocabulary(self) -> int:
        """How many rows the largest lookup table has; 0 where there is none."""
        return max((w.shape[0] for w in self.weights if w.kind == "lookup"), default=0)

    @cached_property
    def fixed(self) -> list[str]:
        """The tensors that are copied as they are: integers, booleans and running statistics."""
        folded = {weight.name for weight in self.weights} | set(self.tied)
        return [name for name in self.layout.tensors if name not in folded]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The base's config.json; empty where it has none."""
        return read_config(self.folder)


def locate(base_model: str, commit: str | None = None, progress: Progress | None = None) -> tuple[Path, str | None]:
    """Return the path of the base model and, if it is a repository, its commit. A path that exists is a path."""
    if (path := _as_path(base_model)) is not None:
        return path, None
    from ..plugins.sources.hub import repository as hub  # the Hub's client takes a while to import

    progress = progress or Progress()

    def came(more: int, whole: int) -> None:
        if not progress.doing:
            progress.begin("fetching the base model", 0, 0)
        progress.all_bytes = whole
        progress.advance(more)

    snapshot = hub.fetch(base_model, commit, came)
    progress.end()
    return snapshot.folder, snapshot.commit


def _as_path(base_model: str) -> Path | None:
    """Return the path that a base model is named by, or None if it is a repository."""
    path = Path(base_model).expanduser()
    if path.exists():
        return path.resolve()
    if base_model.startswith(("/", ".", "~")):
        raise Misconfigured(
            f"there is no base model at {base_model}", "set base_model to a folder, file or org/name@revision"
        )
    return None


def read_contents(place: Path, most: int = MAX_TENSORS) -> Contents:
    """Return what lies at a place, at most so many tensors, by the first format that recognises it.

    Raises what the format raises: Busy while it is not complete or gone, Refused, NotPermitted; Unavailable on a disk's
    error.
    """
    try:
        for name in names("formats"):
            form: Format = load("formats", name)()
            if form.recognises(place):
                return form.contents(place, most)
    except PermissionError as error:
        raise NotPermitted(
            f"cannot read {error.filename} ({owner_of(place)})", "let the daemon's user read it"
        ) from None
    except OSError as error:
        raise Unavailable(f"cannot read {place}: {error.strerror}", "it is tried again") from None
    if not place.exists():
        raise Busy(f"{place} is gone")
    known = f"one of: {', '.join(names('formats'))}"
    raise Refused(
        Reason("unknown-format", f"{place.name}, which no format recognises", known, "save it as safetensors")
    )


def base_layout(place: Path) -> Layout:
    """Return the tensors of the base model. Raises Misconfigured: it is the operator who named it."""
    try:
        contents = read_contents(place)
    except (Busy, Refused) as error:
        raise Misconfigured(f"the base model cannot be read: {error}", "set base_model to a whole model") from None
    if contents.partial:
        raise Misconfigured(f"{place} is an adapter", "set base_model to the model that it was trained on")
    return _not_quantised(contents.layout)


def _not_quantised(layout: Layout) -> Layout:
    """Return the tensors of the base model. Raises Misconfigured where some are quantised."""
    quantised = [info for info in layout.tensors.values() if info.dtype not in TORCH_DTYPE]
    if quantised:
        found = f"{shown(quantised[0].name)} of the base model is {quantised[0].dtype}"
        raise Misconfigured(found, "set base_model to a model that is not quantised")
    return layout


def read_config(folder: Path | None) -> dict[str, Any]:
    """Return the config.json of a model folder, or {}."""
    try:
        return dict(json.loads((folder / "config.json").read_text())) if folder else {}
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Misconfigured(f"{folder}/config.json is no JSON: {error}", "mend the base model") from None


def open_base(place: Path, pins: Mapping[str, Any]) -> Base:
    """Return the base model at a place, with what init found in it: digest, ties, norms. Reads headers only."""
    layout, tied = base_layout(place), pins["tied"]
    weights = fold_weights(layout, tied, pins["convolutions"])
    folder = place if place.is_dir() else None
    return Base(folder, layout, weights, tied, pins["base_digest"], pins["base_norms"], pins.get("base_commit"))


def outline(base_model: str, convolutions: str = "sum") -> Base:
    """Return the base model as its headers show it: without digest and norms, and tied wherever it could be.

    Of a repository nothing but the headers is fetched.
    """
    place = _as_path(base_model)
    if place is not None:
        folder = place if place.is_dir() else None
        layout, config = base_layout(place), read_config(folder)
    else:
        from ..plugins.sources.hub import repository as hub  # the Hub's client takes a while to import

        seen = hub.look(base_model)
        folder, layout, config = None, _not_quantised(seen.layout), dict(seen.config)
    tied = dict(possible_ties(layout)) if tie_setting(config) is True else {}
    return Base(folder, layout, fold_weights(layout, tied, convolutions), tied, "", {})


def examine(place: Path, progress: Progress, convolutions: str = "sum") -> Base:
    """Return the base model at a place after reading all of it: its digest, its norms, and which weights are tied."""
    layout = base_layout(place)
    content, squares = ContentDigest(), dict[str, float]()
    progress.begin("reading the base model", len(layout.tensors), layout.nbytes)
    with Reader(layout) as reader:
        for name, info in layout.tensors.items():
            for rows in row_blocks(info.shape, info.nbytes, READING):
                block = reader.read(name, rows)
                content.add(info, block)
                squares[name] = squares.get(name, 0.0) + (square(block) if info.dtype in FLOATING else 0.0)
                progress.advance(block.numel() * block.element_size())
            progress.next_weight()
    tied = find_ties(layout, content, read_config(place if place.is_dir() else None))
    weights = fold_weights(layout, tied, convolutions)
    if not weights:
        raise Misconfigured(f"{place} has no floating-point weight", "choose another base model")
    norms = {weight.name: math.sqrt(squares[weight.name]) for weight in weights}
    return Base(place if place.is_dir() else None, layout, weights, tied, content.hexdigest(), norms)


def find_ties(layout: Layout, content: ContentDigest, config: Mapping[str, Any]) -> dict[str, str]:
    """Return {second name: first name} of weights that are one, where config.json says that embeddings are tied.

    safetensors cannot store one tensor under two names, so that a tied pair stored twice has the same bytes.
    """
    if tie_setting(config) is not True:
        return {}
    return {head: table for head, table in possible_ties(layout) if content.of(head) == content.of(table)}


def possible_ties(layout: Layout) -> list[tuple[str, str]]:
    """Return the names of each (head, lookup table) that could be one weight, as far as their headers tell."""
    return [(head.name, table.name) for head, table in _pairs(layout)]


def _leaf(name: str) -> str:
    """Return what a module is called in its parent: `c_proj` of `h.0.attn.c_proj.weight`."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _pairs(layout: Layout) -> Iterator[tuple[TensorInfo, TensorInfo]]:
    """Yield each (head, lookup table) that could be one weight."""
    tables = [t for t in layout.tensors.values() if len(t.shape) == 2 and t.dtype in FLOATING]
    lookups = [t for t in tables if kind_of(t) == "lookup"]
    heads = [t for t in tables if kind_of(t) != "lookup" and HEAD_OF_TIED.search(t.name)]
    return ((h, e) for h in heads for e in lookups if (h.shape, h.dtype) == (e.shape, e.dtype))


def tie_setting(config: Mapping[str, Any]) -> bool | None:
    """Whether config.json says that input and output embeddings are one weight; None where it says nothing."""
    nested = config.get("text_config")
    said = [c.get("tie_word_embeddings") for c in (config, nested) if isinstance(c, dict)]
    return True if any(said) else False if False in said else None


def fold_weights(layout: Layout, tied: Mapping[str, str], convolutions: str) -> tuple[Weight, ...]:
    """Return the weights that are folded, in file order."""
    return tuple(
        Weight(info.name, info.shape, kind_of(info, convolutions))
        for info in layout.tensors.values()
        if info.dtype in FLOATING and info.name not in tied and not RUNNING_STATISTICS.search(info.name)
    )


def kind_of(info: TensorInfo, convolutions: str = "sum") -> WeightKind:
    """Decide by name and shape how a weight is treated: a matrix, a batch of matrices (3-D), a lookup, or other.

    A convolution (four or more dimensions, or three and the name says so) is one of the others, unless
    `convolutions` is "project": then it is folded as a matrix of (out, in x k x k).
    """
    path = info.name.split(".")
    module = path[-2] if len(path) > 1 and path[-1] == "weight" else path[-1]
    if len(info.shape) < 2 or 0 in info.shape:
        return "other"
    if len(info.shape) < 4 and LOOKUP.fullmatch(module):
        return "lookup"
    if module.endswith("bias"):
        return "other"
    if len(info.shape) > 3 or (len(info.shape) == 3 and CONVOLUTION.search(info.name)):
        return "convolution" if convolutions == "project" else "other"
    return "matrix"


def row_blocks(shape: tuple[int, ...], nbytes: int, memory: int) -> list[tuple[int, int] | None]:
    """Cut a tensor into blocks of rows, so that all that is alive of one at a time takes at most `memory` bytes.

    A block has at least one row; None means the whole.
    """
    limit = memory // COPIES
    if not shape or nbytes <= limit or shape[0] < 2:
        return [None]
    step = max(1, limit * shape[0] // nbytes)
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def float32_bytes(shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor in float32."""
    return 4 * math.prod(shape)


def file_stamps(layout: Layout) -> list[list[Any]]:
    """Return what tells, without reading, that the base model's files are still the same."""
    stats = [(path, os.stat(path)) for path in layout.files]
    return [[path, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns] for path, s in stats]
