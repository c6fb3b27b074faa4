"""The real client makes repositories, commits, branches and tags, and only with a token that may."""

from pathlib import Path

import pytest
from fakehub import (
    FakeHub,
    Reset,
)
from hub_server.messages import Request
from support.hub_client import HubClient
from support.hub_files import FILES, WEIGHTS, content
from support.models import CONFIG, save_model, tiny_base

OWNER = "HfApi(token='owner')"


def test_a_folder_is_uploaded_and_loads(hub: FakeHub, client: HubClient, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", tiny_base(), CONFIG)
    url = client(f"str({OWNER}.create_repo('org/new', private=True))")
    assert url == f"{hub.url}/org/new"
    upload = f"{OWNER}.upload_folder(repo_id='org/new', folder_path=folder, commit_message='A model').oid"
    commit = client(upload, folder=folder)
    assert hub.files("org/new", commit).items() >= content(str(folder)).items()
    assert [request.token for request in hub.requests if request.method == "PUT"] == [None]  # signed
    asked = len(hub.asked)
    assert client(upload, folder=folder) == commit  # nothing has changed
    assert not [line for line in hub.asked[asked:] if "/commit/" in line]
    fetched = content(client(f"{OWNER}.snapshot_download('org/new')"))
    assert fetched.pop(".gitattributes")
    assert fetched == content(str(folder))


def test_transformers_loads_what_it_pushed(hub: FakeHub, client: HubClient) -> None:
    sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    transformers = "__import__('transformers')"
    make = f"{transformers}.LlamaForCausalLM({transformers}.LlamaConfig(**sizes)).push_to_hub('org/llama', token='owner').oid"
    commit = client(make, sizes=sizes | heads)
    load = f"{transformers}.AutoModelForCausalLM.from_pretrained('org/llama', revision=commit).num_parameters()"
    assert client(load, commit=commit) == 2 * 32 * 8 + 4 * 8 * 8 + 3 * 8 * 8 + 3 * 8
    assert {"config.json", "model.safetensors"} <= set(hub.files("org/llama", commit))


def test_a_large_file_is_uploaded_in_parts(hub: FakeHub, client: HubClient) -> None:
    hub.push("org/a", {})
    hub.part_size = 4000
    add = "CommitOperationAdd('b.safetensors', bytes(range(200)) * 47)"
    try:
        client(f"{OWNER}.create_commit('org/a', [{add}], commit_message='parts')")
    finally:
        hub.part_size = None
    assert hub.files("org/a") == {"b.safetensors": bytes(range(200)) * 47}
    assert len([line for line in hub.asked if line.startswith("PUT")]) == 3


def test_a_commit_adds_copies_and_deletes(hub: FakeHub, client: HubClient) -> None:
    first = hub.push("org/a", FILES | {"gone.txt": b"gone"})
    operations = (
        "CommitOperationAdd('added.txt', b'added'), "
        "CommitOperationCopy('model.safetensors', 'copied.safetensors'), "
        "CommitOperationCopy('config.json', 'copied.json'), "
        "CommitOperationDelete('nested/'), "
        "CommitOperationDelete('gone.txt')"
    )
    make = f"{OWNER}.create_commit('org/a', [{{}}], commit_message='all', parent_commit=parent).oid"
    made = client(make.format(operations), parent=first)
    copied = {"added.txt": b"added", "copied.safetensors": WEIGHTS, "copied.json": FILES["config.json"]}
    kept = {name: FILES[name] for name in ("config.json", "model.safetensors", "README.md")}
    assert hub.files("org/a", made) == kept | copied
    again = "CommitOperationDelete('added.txt')"
    assert client.failure(make.format(again), parent=first) == ("HfHubHTTPError", 412)
    missing = client.failure(make.format("CommitOperationDelete('gone.txt')"), parent=made)
    assert missing == ("RemoteEntryNotFoundError", 404)
    assert client("[c.title for c in api.list_repo_commits('org/a')]") == ["all", "Upload"]


def test_tags_and_branches_are_made_and_deleted(hub: FakeHub, client: HubClient) -> None:
    first = hub.push("org/a", FILES)
    tag = f"{OWNER}.create_tag('org/a', tag='v/1', revision='main', exist_ok=ok)"
    client(tag, ok=False)
    assert client.failure(tag, ok=False) == ("HfHubHTTPError", 409)
    client(tag, ok=True)
    client(f"{OWNER}.create_branch('org/a', branch='try/this', revision='v/1')")
    second = client(f"{OWNER}.upload_file(path_or_fileobj=b'', path_in_repo='a', repo_id='org/a').oid")
    repository = hub.repositories["org/a"]
    assert (repository.branches, repository.tags) == ({"main": second, "try/this": first}, {"v/1": first})
    client(f"{OWNER}.delete_branch('org/a', branch='try/this')")
    client(f"{OWNER}.delete_tag('org/a', tag='v/1')")
    assert client.failure(f"{OWNER}.delete_tag('org/a', tag='v/1')") == ("RevisionNotFoundError", 404)
    client(f"{OWNER}.super_squash_history('org/a')")
    assert len(repository.commits) == 1


def test_a_repository_is_made_shown_moved_and_deleted(hub: FakeHub, client: HubClient) -> None:
    make = f"str({OWNER}.create_repo('org/new', private=True, exist_ok=ok))"
    client(make, ok=False)
    assert client.failure(make, ok=False) == ("HfHubHTTPError", 409)
    assert client(make, ok=True) == f"{hub.url}/org/new"
    assert client("api.repo_exists('org/new')") is False
    client(f"{OWNER}.update_repo_settings('org/new', private=False)")
    assert client("api.repo_exists('org/new')") is True
    client(f"{OWNER}.move_repo('org/new', 'owner/newer')")
    assert client("api.model_info('org/new').id") == "owner/newer"
    client(f"{OWNER}.delete_repo('owner/newer')")
    assert client("api.repo_exists('owner/newer')") is False


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("reader", 403), ("other", 403)])
def test_only_an_owners_writing_token_changes_anything(
    hub: FakeHub, client: HubClient, token: str | None, status: int
) -> None:
    hub.push("org/a", FILES)
    add = "[CommitOperationAdd('a.txt', b'')], commit_message='no'"
    for change in (f"create_commit('org/a', {add})", "create_tag('org/a', tag='v1')", "delete_repo('org/a')"):
        assert client.failure(f"HfApi(token=token).{change}", token=token)[1] == status
    assert client.failure("HfApi(token=token).create_repo('org/new')", token=token)[1] == status
    assert hub.files("org/a") == FILES


def test_a_commit_whose_answer_is_lost_has_happened(hub: FakeHub, client: HubClient) -> None:
    hub.push("org/a", FILES)
    hub.fault("POST .*/commit/", Reset(done=True))
    assert client.failure(f"{OWNER}.upload_file(path_or_fileobj=b'', path_in_repo='a', repo_id='org/a')")[1] is None
    assert "a" in hub.files("org/a")


def test_a_large_file_that_is_not_what_was_announced_is_refused(hub: FakeHub) -> None:
    hub.awaited["0" * 64] = 3
    for body in (b"xxx", b"xx"):
        assert hub.serve(Request("PUT", "/lfs/" + "0" * 64, body=body)).status == 400
    assert not hub.large
