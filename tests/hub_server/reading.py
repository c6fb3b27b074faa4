"""The routes by which a client looks and fetches: listing, information, trees, histories, references, files."""

import base64
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from .cards import entry, information, told_of
from .messages import Answer, Problem, Request, json_answer
from .repositories import Commit, Repository

if TYPE_CHECKING:
    from .hub import FakeHub

BRIEF = ("_id", "id", "modelId", "private", "tags", "downloads", "likes", "createdAt")  # of a listing without `full`
ALWAYS = ("_id", "id", "modelId")  # with `expand`


def whoami(hub: "FakeHub", request: Request) -> Answer:
    account = hub.account(request)
    if account is None:
        raise Problem(401, "", "Invalid username or password.")
    role = "write" if account.write else "read"
    orgs = [{"type": "org", "name": org, "id": org, "roleInOrg": role} for org in account.orgs]
    auth = {"type": "access_token", "accessToken": {"displayName": "token", "role": role}}
    return json_answer({"type": "user", "id": account.user, "name": account.user, "orgs": orgs, "auth": auth})


def models(hub: "FakeHub", request: Request) -> Answer:
    """List repositories, the newest first."""
    account, by = hub.account(request), "created" if request.first("sort") == "createdAt" else "modified"
    seen = [repository for repository in hub.repositories.values() if repository.may_be_seen(account)]
    seen = [repository for repository in seen if repository.branches]
    told = {repository.name: information(repository, hub.commit_at(repository, "main")) for repository in seen}
    found = [repository for repository in seen if _matches(request, told[repository.name])]
    found.sort(key=lambda repository: (-getattr(repository, by), repository.name))
    keys = [[-getattr(repository, by), repository.name] for repository in found]
    return _page(hub, request, keys, [_shown(request, told[repository.name]) for repository in found])


def _matches(request: Request, told: dict[str, Any]) -> bool:
    author, wanted = request.first("author"), request.query.get("filter", [])
    tags = [tag for value in wanted for tag in value.split(",")]
    return (
        author in ("", told["author"])
        and request.first("search").lower() in told["id"].lower()
        and all(tag in told["tags"] for tag in tags)
    )


def _shown(request: Request, told: dict[str, Any]) -> dict[str, Any]:
    if wanted := _expanded(request):
        return {name: value for name, value in told.items() if name in (*ALWAYS, *wanted)}
    if request.first("full").lower() in ("true", "1"):
        return {name: value for name, value in told.items() if name not in ("baseModels", "cardData")}
    return {name: value for name, value in told.items() if name in BRIEF}


def _expanded(request: Request) -> list[str]:
    return [name for value in request.query.get("expand", []) for name in value.split(",")]


def _page(hub: "FakeHub", request: Request, keys: Sequence[list[Any]], rows: Sequence[Any]) -> Answer:
    """Return the rows after the cursor and a link to those after them; the keys are in order."""
    cursor = request.first("cursor")
    after = json.loads(base64.urlsafe_b64decode(cursor)) if cursor else None
    start = 0 if after is None else sum(key <= after for key in keys)
    end = start + min(int(request.first("limit") or hub.page_size), hub.page_size)
    headers = {}
    if end < len(rows):
        following = base64.urlsafe_b64encode(json.dumps(keys[end - 1]).encode()).decode()
        query = urlencode(request.query | {"cursor": [following]}, doseq=True)
        headers["Link"] = f'<{hub.url}{request.path}?{query}>; rel="next"'
    return json_answer(rows[start:end], headers=headers)


def info(hub: "FakeHub", request: Request, name: str, revision: str = "main") -> Answer:
    repository = hub.repository(request, name)
    told = information(repository, hub.commit_at(repository, revision), request.first("blobs").lower() == "true")
    return json_answer(_shown(request, told) if _expanded(request) else told)


def tree(hub: "FakeHub", request: Request, name: str, revision: str, folder: str = "") -> Answer:
    """List files and folders."""
    repository = hub.repository(request, name)
    commit = hub.commit_at(repository, revision)
    listed = _entries(commit, folder, request.first("recursive").lower() in ("true", "1"))
    if folder and not listed:
        raise Problem(404, "EntryNotFound", f"{folder} does not exist on {revision}")
    if request.first("expand").lower() in ("true", "1"):
        listed = [known | {"lastCommit": _last(commit)} for known in listed]
    return _page(hub, request, [[known["path"]] for known in listed], listed)


def _entries(commit: Commit, folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = folder.rstrip("/") + "/" if folder else ""
    inside = {path: blob for path, blob in commit.files.items() if path.startswith(prefix)}
    folders = {parent for path in inside for parent in _parents(path) if parent.startswith(prefix) and parent != folder}
    found: list[dict[str, Any]] = [
        {"type": "directory", "oid": commit.id, "size": 0, "path": parent} for parent in folders
    ]
    found += [entry(path, blob) for path, blob in inside.items()]
    found = [known for known in found if recursive or "/" not in known["path"].removeprefix(prefix)]
    return sorted(found, key=lambda known: known["path"])


def _parents(path: str) -> Iterable[str]:
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _last(commit: Commit) -> dict[str, Any]:
    told = told_of(commit)
    return {name: told[name] for name in ("id", "title", "date")}


def commits(hub: "FakeHub", request: Request, name: str, revision: str) -> Answer:
    """List the commits from a revision backwards."""
    repository = hub.repository(request, name)
    rows = [told_of(commit) for commit in repository.history(hub.commit_at(repository, revision))]
    return _page(hub, request, [[number] for number in range(len(rows))], rows)


def refs(hub: "FakeHub", request: Request, name: str) -> Answer:
    """List branches and tags."""
    repository = hub.repository(request, name)
    return json_answer(
        {
            "branches": _refs("refs/heads/", repository.branches),
            "converts": [],
            "tags": _refs("refs/tags/", repository.tags),
            "pullRequests": [],
        }
    )


def _refs(prefix: str, known: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": prefix + name, "targetCommit": commit} for name, commit in known.items()]


def paths_info(hub: "FakeHub", request: Request, name: str, revision: str) -> Answer:
    """Tell of some paths; those that are nowhere are left out."""
    is_json = request.headers.get("content-type", "").startswith("application/json")
    wanted = request.json()["paths"] if is_json else parse_qs(request.body.decode()).get("paths", [])
    commit = hub.commit_at(hub.repository(request, name), revision)
    return json_answer([known for known in _entries(commit, "", recursive=True) if known["path"] in wanted])


def resolve(hub: "FakeHub", request: Request, name: str, revision: str, path: str) -> Answer:
    """Hand out a file."""
    repository = hub.repository(request, name)
    _check_gate(hub, request, repository)
    commit = hub.commit_at(repository, revision)
    if path not in commit.files:
        raise Problem(404, "EntryNotFound", f"{path} does not exist", {"X-Repo-Commit": commit.id})
    blob = commit.files[path]
    headers = {
        "X-Repo-Commit": commit.id,
        "ETag": f'"{blob.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "X-Linked-Size": str(blob.size),
        "X-Linked-ETag": f'"{blob.etag}"',
    }
    return Answer(200, blob.data, headers)


def _check_gate(hub: "FakeHub", request: Request, repository: Repository) -> None:
    if not repository.may_be_read(hub.account(request)):
        raise Problem(403, "GatedRepo", f"Access to model {repository.name} is restricted")
    if repository.disabled:
        raise Problem(403, "", "Access to this resource is disabled.")
