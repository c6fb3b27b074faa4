"""The routes by which a client changes a Hub: repositories, uploads of large files, commits, branches and tags."""

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .messages import Answer, Problem, Request, json_answer
from .repositories import MAIN, Account, Blob, Commit, Repository, is_lfs

if TYPE_CHECKING:
    from .hub import FakeHub

ATTRIBUTES = {".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", lfs=False)}


def writer(hub: "FakeHub", request: Request, name: str) -> Account:
    """Return the account of a request that may change what is called so."""
    account = hub.account(request)
    if account is None:
        raise Problem(401, "", "Invalid username or password.")
    if not account.write or not account.owns(name):
        raise Problem(403, "", f"Forbidden: you don't have the rights to change {name}")
    return account


def changed(hub: "FakeHub", request: Request, name: str) -> Repository:
    """Return the repository that a request may change."""
    repository = hub.repository(request, name)
    writer(hub, request, name)
    return repository


# ------------------------------------------------------------------------------------------------- whole repositories


def _named(hub: "FakeHub", request: Request) -> str:
    asked, account = request.json(), hub.account(request)
    return f"{asked.get('organization') or (account.user if account else '')}/{asked['name']}"


def _visibility(repository: Repository, asked: dict[str, Any]) -> None:
    if "visibility" in asked:
        repository.private = asked["visibility"] == "private"
    repository.private = asked.get("private", repository.private)
    repository.gated = asked.get("gated", repository.gated)


def create_repo(hub: "FakeHub", request: Request) -> Answer:
    name = _named(hub, request)
    writer(hub, request, name)
    told = {"url": f"{hub.url}/{name}", "name": name, "id": name}
    if name in hub.repositories:
        return json_answer(told | {"error": "You already created this model repo"}, 409)
    now = hub.clock()
    repository = hub.repositories[name] = Repository(name, now)
    _visibility(repository, request.json())
    repository.commit(MAIN, ATTRIBUTES, now, "initial commit")
    return json_answer(told)


def delete_repo(hub: "FakeHub", request: Request) -> Answer:
    name = _named(hub, request)
    changed(hub, request, name)
    hub.delete(name)
    return Answer()


def move_repo(hub: "FakeHub", request: Request) -> Answer:
    asked = request.json()
    changed(hub, request, asked["fromRepo"])
    writer(hub, request, asked["toRepo"])
    if asked["toRepo"] in hub.repositories:
        raise Problem(409, "", "A repository of this name exists")
    hub.rename(asked["fromRepo"], asked["toRepo"])
    return Answer()


def settings(hub: "FakeHub", request: Request, name: str) -> Answer:
    repository = changed(hub, request, name)
    _visibility(repository, request.json())
    return json_answer({"private": repository.private, "gated": repository.gated})


# ---------------------------------------------------------------------------------------------------------- large files


def preupload(hub: "FakeHub", request: Request, name: str, revision: str) -> Answer:
    """Tell how each file is to be uploaded, and what is there under its name."""
    there = hub.commit_at(changed(hub, request, name), revision).files
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if is_lfs(file["path"], file["size"]) else "regular",
            "shouldIgnore": False,
            "oid": there[file["path"]].etag if file["path"] in there else None,
        }
        for file in request.json()["files"]
    ]
    return json_answer({"files": files})


def lfs_batch(hub: "FakeHub", request: Request, name: str) -> Answer:
    """Tell where each large file is to be put; one that is there already has no action."""
    changed(hub, request, name)
    objects = []
    for wanted in request.json()["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        known: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in hub.large:
            hub.awaited[oid] = size
            verify = {"href": f"{hub.url}/{name}.git/info/lfs/verify"}
            known["actions"] = {"upload": _upload(hub, oid, size), "verify": verify}
        objects.append(known)
    return json_answer({"transfer": "multipart" if hub.part_size else "basic", "objects": objects})


def _upload(hub: "FakeHub", oid: str, size: int) -> dict[str, Any]:
    place = f"{hub.url}/lfs/{oid}"
    if hub.part_size is None or size <= hub.part_size:
        return {"href": place}
    count = -(-size // hub.part_size)
    parts = {str(number): f"{place}/{number}" for number in range(1, count + 1)}
    return {"href": place, "header": {"chunk_size": str(hub.part_size), **parts}}


def put_large(hub: "FakeHub", request: Request, oid: str) -> Answer:
    """Take a large file, whose URL is signed: no token comes along."""
    return _keep(hub, oid, request.body)


def put_part(hub: "FakeHub", request: Request, oid: str, number: str) -> Answer:
    """Take a part of one."""
    hub.parts[oid, int(number)] = request.body
    return Answer(200, b"", {"ETag": f'"{hashlib.sha256(request.body).hexdigest()}"'})


def join_parts(hub: "FakeHub", request: Request, oid: str) -> Answer:
    """Make a large file of its parts."""
    numbers = sorted(part["partNumber"] for part in request.json()["parts"])
    return _keep(hub, oid, b"".join(hub.parts.pop((oid, number)) for number in numbers))


def _keep(hub: "FakeHub", oid: str, data: bytes) -> Answer:
    if hub.awaited.get(oid) != len(data) or hashlib.sha256(data).hexdigest() != oid:
        raise Problem(400, "", "The content is not what was announced")
    hub.large[oid] = Blob(data, lfs=True)
    return Answer()


def verify_large(hub: "FakeHub", request: Request, name: str) -> Answer:
    """Tell whether a large file has arrived."""
    changed(hub, request, name)
    if request.json()["oid"] not in hub.large:
        raise Problem(404, "", "The object was not uploaded")
    return Answer()


# ------------------------------------------------------------------------------------------------------------- commits


def commit(hub: "FakeHub", request: Request, name: str, branch: str) -> Answer:
    """Make a commit of what lines of JSON say."""
    repository = changed(hub, request, name)
    if branch not in repository.branches:
        raise Problem(404, "RevisionNotFound", f"Invalid rev id: {branch}")
    lines = [json.loads(line) for line in request.body.splitlines() if line]
    header = lines[0]["value"]
    last = hub.commit_at(repository, branch)
    if header.get("parentCommit", last.id) != last.id:
        raise Problem(412, "", "A commit has happened since. Please refresh and try again.")
    files = dict(last.files)
    for line in lines[1:]:
        _apply(hub, files, line["key"], line["value"])
    made = repository.commit(branch, files, hub.clock(), header["summary"], header.get("description", ""))
    url = f"{hub.url}/{name}/commit/{made.id}"
    return json_answer({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


def _apply(hub: "FakeHub", files: dict[str, Blob], kind: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if kind == "file":
        files[path] = Blob(base64.b64decode(value["content"]), lfs=False)
    elif kind == "lfsFile":
        if value["oid"] not in hub.large:
            raise Problem(400, "", f"The content of {path} was not uploaded")
        files[path] = hub.large[value["oid"]]
    else:
        for gone in list(_deleted(files, path, folder=kind == "deletedFolder")):
            del files[gone]


def _deleted(files: dict[str, Blob], path: str, folder: bool) -> Iterator[str]:
    gone = [name for name in files if (name.startswith(path.rstrip("/") + "/") if folder else name == path)]
    if not gone:
        raise Problem(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
    yield from gone


# --------------------------------------------------------------------------------------------------- branches and tags


def _start(hub: "FakeHub", repository: Repository, known: dict[str, str], name: str, revision: str) -> Commit:
    if name in known:
        raise Problem(409, "", f"Reference already exists: {name}")
    return hub.commit_at(repository, revision)


def create_tag(hub: "FakeHub", request: Request, name: str, revision: str) -> Answer:
    repository, tag = changed(hub, request, name), request.json()["tag"]
    repository.tags[tag] = _start(hub, repository, repository.tags, tag, revision).id
    return Answer()


def create_branch(hub: "FakeHub", request: Request, name: str, branch: str) -> Answer:
    repository, start = changed(hub, request, name), request.json().get("startingPoint", MAIN)
    repository.branches[branch] = _start(hub, repository, repository.branches, branch, start).id
    return Answer()


def delete_tag(hub: "FakeHub", request: Request, name: str, tag: str) -> Answer:
    return _unname(changed(hub, request, name).tags, tag)


def delete_branch(hub: "FakeHub", request: Request, name: str, branch: str) -> Answer:
    if branch == MAIN:
        raise Problem(400, "", "The main branch cannot be deleted")
    return _unname(changed(hub, request, name).branches, branch)


def _unname(known: dict[str, str], name: str) -> Answer:
    if name not in known:
        raise Problem(404, "RevisionNotFound", f"Invalid rev id: {name}")
    del known[name]
    return Answer()


def squash(hub: "FakeHub", request: Request, name: str, branch: str) -> Answer:
    """Make one commit of a branch's whole history."""
    repository = changed(hub, request, name)
    files = hub.commit_at(repository, branch).files
    repository.commit(branch, files, hub.clock(), request.json()["message"], root=True)
    return Answer()


def check_card(hub: "FakeHub", request: Request) -> Answer:
    """Find nothing wrong with a card."""
    return json_answer({"errors": [], "warnings": []})
