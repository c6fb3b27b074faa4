"""The Hugging Face Hub: a repository's files at one commit, through the ecosystem's own client and cache."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...state.errors import Misconfigured, NotPermitted, Unavailable

REPOSITORY = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
# Pickles, other frameworks' weights and code are never fetched: mergd reads safetensors, and copies what is small.
LEFT = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot", "onnx/*",
        "openvino/*", "original/*"]  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """A repository's files on this disk, and the commit they are of."""

    folder: Path
    commit: str  # 40 hexadecimal digits


def fetch(name: str, commit: str | None = None) -> Snapshot:
    """Return `org/name` or `org/name@revision` at the commit that the revision means now, or at `commit` if given.

    What the cache holds already is not fetched again; with a commit given, nothing is asked of the Hub then.
    Raises Misconfigured if there is no such repository or revision, NotPermitted where the token does not reach,
    Unavailable while the Hub does not answer.
    """
    match = REPOSITORY.fullmatch(name)
    if match is None:
        raise Misconfigured(f"{name!r} is neither a path that exists nor a repository", "write org/name@revision")
    repo = match["repo"]
    try:
        if commit is None:
            commit = HfApi().model_info(repo, revision=match["revision"], timeout=30).sha
        folder = _cached(repo, commit) or snapshot_download(repo, revision=commit, ignore_patterns=LEFT)
    except GatedRepoError:
        raise NotPermitted(f"{repo} is gated", "ask for access, then set HF_TOKEN") from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise Misconfigured(f"{name}: {_first_line(error)}", "check the name, the revision and HF_TOKEN") from None
    except Exception as error:  # noqa: BLE001 - its HTTP library, another one in each major version, raises through it
        raise Unavailable(f"the Hub does not answer for {name}: {_first_line(error)}", "try again later") from None
    return Snapshot(Path(folder), str(commit))


def _cached(repo: str, commit: str | None) -> str | None:
    try:
        return snapshot_download(repo, revision=commit, ignore_patterns=LEFT, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
