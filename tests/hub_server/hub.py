"""A Hugging Face Hub on the loopback for the real client: what a test does to it, and which route answers what."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote

from . import reading, uploads
from .messages import Answer, Problem, Request
from .repositories import MAIN, Account, Blob, Commit, Repository, blobs
from .wire import Loopback

API = r"/api/models/([^/]+/[^/]+)"
Route = Callable[..., Answer]
PATHS: list[tuple[str, str, Route]] = [
    ("GET", r"/api/whoami-v2", reading.whoami),
    ("GET", r"/api/models", reading.models),
    ("GET", API, reading.info),
    ("GET", API + r"/revision/([^/]+)", reading.info),
    ("GET", API + r"/tree/([^/]+)(?:/(.+))?", reading.tree),
    ("GET", API + r"/commits/([^/]+)", reading.commits),
    ("GET", API + r"/refs", reading.refs),
    ("POST", API + r"/paths-info/([^/]+)", reading.paths_info),
    ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", reading.resolve),
    ("POST", r"/api/repos/create", uploads.create_repo),
    ("DELETE", r"/api/repos/delete", uploads.delete_repo),
    ("POST", r"/api/repos/move", uploads.move_repo),
    ("PUT", API + r"/settings", uploads.settings),
    ("POST", API + r"/preupload/([^/]+)", uploads.preupload),
    ("POST", API + r"/commit/([^/]+)", uploads.commit),
    ("POST", API + r"/tag/([^/]+)", uploads.create_tag),
    ("DELETE", API + r"/tag/([^/]+)", uploads.delete_tag),
    ("POST", API + r"/branch/([^/]+)", uploads.create_branch),
    ("DELETE", API + r"/branch/([^/]+)", uploads.delete_branch),
    ("POST", API + r"/super-squash/([^/]+)", uploads.squash),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", uploads.lfs_batch),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/verify", uploads.verify_large),
    ("PUT", r"/lfs/([0-9a-f]{64})", uploads.put_large),
    ("PUT", r"/lfs/([0-9a-f]{64})/([0-9]+)", uploads.put_part),
    ("POST", r"/lfs/([0-9a-f]{64})", uploads.join_parts),
    ("POST", r"/api/validate-yaml", uploads.check_card),
]
ROUTES = [(method, re.compile(path), answer) for method, path, answer in PATHS]


def ticking() -> Callable[[], float]:
    """Return a clock that never tells one millisecond twice: a listing tells no less, and is ordered by it."""
    last = 0.0

    def tick() -> float:
        nonlocal last
        last = max(time.time(), last + 0.001)
        return last

    return tick


class FakeHub(Loopback):
    """Serves while entered, at `url`; `asked` has each request, and those whose path matches `broken` fail."""

    def __init__(self, page_size: int = 1000, port: int = 0, keep_alive: bool = False) -> None:
        super().__init__(port, keep_alive)
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}
        self.tokens: dict[str, Account] = {}
        self.page_size = page_size
        self.part_size: int | None = None  # bytes from which a large file is uploaded in parts
        self.large: dict[str, Blob] = {}  # by sha256
        self.awaited: dict[str, int] = {}  # uploads to come: the size of each
        self.parts: dict[tuple[str, int], bytes] = {}
        self.clock: Callable[[], float] = ticking()
        self.broken = r"(?!)"  # a pattern of paths; this one matches none

    # ------------------------------------------------------------------------------------------ what a test does to it

    def push(
        self,
        repo: str,
        files: Mapping[str, bytes],
        gated: bool | str | None = None,
        *,
        private: bool | None = None,
        tags: Iterable[str] | None = None,
        branch: str = MAIN,
        when: float | None = None,
        title: str = "Upload",
        force: bool = False,
    ) -> str:
        """Make a commit that holds exactly these files, move the branch to it, and return its 40 digits.

        `tags` are the model's tags that its card does not already say; `force` replaces the branch's history.
        """
        with self.lock:
            when = self.clock() if when is None else when
            repository = self.repositories.setdefault(repo, Repository(repo, when))
            repository.gated = repository.gated if gated is None else gated
            repository.private = repository.private if private is None else private
            repository.labels = repository.labels if tags is None else list(tags)
            kept = blobs(files)
            self.large |= {blob.sha256: blob for blob in kept.values() if blob.lfs}
            return repository.commit(branch, kept, when, title, root=force).id

    def tag(self, repo: str, name: str, revision: str = MAIN) -> None:
        """Have a tag of a repository's mean a commit, whatever it meant before."""
        with self.lock:
            repository = self.repositories[repo]
            repository.tags[name] = self.commit_at(repository, revision).id

    def rename(self, old: str, new: str) -> None:
        """Give a repository another name, to which the old one leads."""
        with self.lock:
            repository = self.repositories[new] = self.repositories.pop(old)
            repository.name = new
            self.renamed.pop(new, None)
            self.renamed[old] = new

    def delete(self, repo: str) -> None:
        """Delete a repository."""
        with self.lock:
            del self.repositories[repo]

    # -------------------------------------------------------------------------------------------------- what it answers

    def answer(self, request: Request) -> Answer:
        if re.search(self.broken, unquote(request.path)):
            return Answer(500)
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, path, answer in ROUTES:
            if wanted == method and (match := path.fullmatch(request.path)):
                return answer(self, request, *(unquote(group) for group in match.groups() if group is not None))
        raise Problem(404, "RouteNotFound", f"no route for {request.method} {request.path}")

    def account(self, request: Request) -> Account | None:
        """Return whose token came along; None without one."""
        if request.token is None:
            return None
        if request.token not in self.tokens:
            raise Problem(401, "", "Invalid credentials in Authorization header")
        return self.tokens[request.token]

    def repository(self, request: Request, name: str) -> Repository:
        """Return the repository of a request, if there is one for its account."""
        account, repository = self.account(request), self.repositories.get(name)
        if repository is None and name in self.renamed:
            moved = request.target.replace(name, self.renamed[name], 1)
            raise Problem(307, "", "moved", {"Location": moved})
        if repository is None or not repository.may_be_seen(account):
            raise Problem(404, "RepoNotFound", "Repository not found")
        return repository

    def commit_at(self, repository: Repository, revision: str) -> Commit:
        """Return the commit that a revision means."""
        commit = repository.at(revision)
        if commit is None:
            raise Problem(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def files(self, repo: str, revision: str = MAIN) -> dict[str, bytes]:
        """Return the content of each file at a revision."""
        return {name: blob.data for name, blob in self.commit_at(self.repositories[repo], revision).files.items()}
