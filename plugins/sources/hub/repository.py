"""The Hugging Face Hub: a repository's files at one commit, or their headers alone, through the ecosystem's own client and cache."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ....state.errors import Misconfigured
from ....state.records import Layout, TensorInfo
from .client import Gone, answering
from .coming import Came, bar_that

REPOSITORY = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
# Pickles, other frameworks' weights and code are never fetched: mergd reads safetensors, and copies what is small.
LEFT = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot", "onnx/*",
        "openvino/*", "original/*"]  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """A repository's files on this disk, and the commit they are of."""

    folder: Path
    commit: str  # 40 hexadecimal digits


@dataclass(frozen=True)
class Headers:
    """What the headers of a repository's weights say; nothing else was fetched."""

    layout: Layout
    config: Mapping[str, Any]  # its config.json


def fetch(name: str, commit: str | None = None, came: Came = lambda more, whole: None) -> Snapshot:
    """Return `org/name` or `org/name@revision` at the commit that the revision means now, or at `commit` if given.

    What the cache holds already is not fetched again; with a commit given, nothing is asked of the Hub then.
    `came` is told of bytes as they come, from any thread, one call at a time.
    Raises Misconfigured if there is no such repository or revision, NotPermitted where the token does not reach,
    Unavailable while the Hub does not answer.
    """
    repo, revision = _parts(name)
    with _answering(name):
        held = _cached(repo, commit) if commit else None
        commit = commit or HfApi().model_info(repo, revision=revision, timeout=30).sha
        folder = held or snapshot_download(repo, revision=commit, ignore_patterns=LEFT, tqdm_class=bar_that(came))
    return Snapshot(Path(folder), str(commit))


def let_others_read(snapshot: Path) -> None:
    """Open a snapshot's files to others, and the folders of its repository; what lies above is left as it is."""
    inside = [snapshot, *snapshot.rglob("*")]
    blobs = [path.resolve() for path in inside]
    for path in {snapshot.parents[1], snapshot.parent, *inside, *blobs, *(blob.parent for blob in blobs)}:
        with suppress(OSError):  # somebody else's cache
            path.chmod(path.stat().st_mode & 0o777 | (0o055 if path.is_dir() else 0o044))


def look(name: str) -> Headers:
    """Return what the headers of `org/name` or `org/name@revision` say now, without its weights. Raises as `fetch` does."""
    repo, revision = _parts(name)
    with _answering(name), TemporaryDirectory() as aside:  # the cache must not look as if it held the repository
        commit = HfApi().model_info(repo, revision=revision, timeout=30).sha
        found = HfApi().get_safetensors_metadata(repo, revision=commit).files_metadata
        try:
            config = hf_hub_download(repo, "config.json", revision=commit, local_dir=aside)
            values = dict(json.loads(Path(config).read_text()))
        except EntryNotFoundError:
            values = {}
    tensors = {
        tensor: TensorInfo(tensor, info.dtype, tuple(info.shape), file, start, end - start)
        for file, about in sorted(found.items())
        for tensor, info in about.tensors.items()
        for start, end in (info.data_offsets,)
    }
    return Headers(Layout(tensors, tuple(sorted(found))), values)


def _parts(name: str) -> tuple[str, str | None]:
    match = REPOSITORY.fullmatch(name)
    if match is None:
        raise Misconfigured(f"{name!r} is neither a path that exists nor a repository", "write org/name@revision")
    return match["repo"], match["revision"]


@contextmanager
def _answering(name: str) -> Iterator[None]:
    """Say what the Hub answers; what is not there is wrong in the configuration that names it."""
    try:
        with answering(name):
            yield
    except Gone as error:
        raise Misconfigured(str(error), "check the name, the revision and HF_TOKEN") from None


def _cached(repo: str, commit: str) -> str | None:
    """Return where a commit lies in the cache; None if nothing, or no weights: others fetch files one by one."""
    try:
        folder = snapshot_download(repo, revision=commit, ignore_patterns=LEFT, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        return None
    return folder if any(Path(folder).glob("*.safetensors")) else None
