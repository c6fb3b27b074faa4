"""What a Hub holds: repositories with commits, branches, tags and visibility, and the accounts that may see and change them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".onnx", ".gguf")
LFS_SIZE = 10_000_000  # bytes from which any file is one
MAIN = "main"


@dataclass(frozen=True)
class Blob:
    """A file's content; git has only a pointer to it where it is large."""

    data: bytes
    lfs: bool

    @property
    def size(self) -> int:
        return len(self.data)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git has of a large file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def git_id(self) -> str:
        stored = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_id


def is_lfs(name: str, size: int) -> bool:
    """Whether the Hub keeps such a file outside git."""
    return size > 0 and (name.endswith(LFS_SUFFIXES) or size >= LFS_SIZE)


def blobs(files: Mapping[str, bytes]) -> dict[str, Blob]:
    """Return what a Hub keeps of these files."""
    return {name: Blob(data, is_lfs(name, len(data))) for name, data in files.items()}


@dataclass(frozen=True)
class Commit:
    """All files at one point of a history."""

    id: str
    files: Mapping[str, Blob]
    when: float
    title: str
    message: str
    parent: str | None


@dataclass(frozen=True)
class Account:
    """Whom a token speaks for: a user, the organisations of which they are a member, and whether it may change anything."""

    user: str
    orgs: tuple[str, ...] = ()
    write: bool = True

    def owns(self, repository: str) -> bool:
        """Whether a repository lies in one of the account's namespaces."""
        return repository.split("/")[0] in (self.user, *self.orgs)


@dataclass
class Repository:
    """A repository; `tags` are git's, `labels` what the listing shows as a model's tags beside those of its card."""

    name: str
    created: float
    private: bool = False
    gated: str | bool = False
    disabled: bool = False
    labels: list[str] = field(default_factory=list)
    granted: set[str] = field(default_factory=set)  # users who may read it while it is gated
    modified: float = 0.0
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    _made: int = 0

    def commit(
        self, branch: str, files: Mapping[str, Blob], when: float, title: str, message: str = "", root: bool = False
    ) -> Commit:
        """Add a commit to a branch; as a root, it replaces all that the branch had."""
        parent = None if root else self.branches.get(branch)
        known = [self.name, self._made, parent, when, sorted((name, blob.sha256) for name, blob in files.items())]
        commit = Commit(hashlib.sha1(json.dumps(known).encode()).hexdigest(), dict(files), when, title, message, parent)
        self.commits[commit.id] = commit
        self.branches[branch] = commit.id
        self.modified = when
        self._made += 1
        if root:
            self._forget()
        return commit

    def _forget(self) -> None:
        """Drop the commits to which nothing leads any more."""
        heads = [self.commits[head] for head in {*self.branches.values(), *self.tags.values()}]
        self.commits = {commit.id: commit for head in heads for commit in self.history(head)}

    def at(self, revision: str) -> Commit | None:
        """Return the commit that a branch, a tag or a commit's 40 digits mean."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        return self.commits.get(self.branches.get(name) or self.tags.get(name) or name)

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yield a commit and those before it."""
        found: Commit | None = commit
        while found:
            yield found
            found = self.commits.get(found.parent) if found.parent else None

    def may_be_seen(self, account: Account | None) -> bool:
        """Whether the repository exists for this account."""
        return not self.private or (account is not None and account.owns(self.name))

    def may_be_read(self, account: Account | None) -> bool:
        """Whether its files may be fetched."""
        return not self.gated or (account is not None and (account.owns(self.name) or account.user in self.granted))
