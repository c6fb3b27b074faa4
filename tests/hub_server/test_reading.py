"""The real client lists, looks and fetches, as far as its token may."""

from pathlib import Path

from fakehub import (
    Before,
    FakeHub,
    Fault,
)
from support.hub_client import HubClient
from support.hub_files import FILES, WEIGHTS, content
from support.models import CONFIG, save_model, tiny_base

OWNER = "HfApi(token='owner')"


# -------------------------------------------------------------------------------------------------------------- listing


def test_a_listing_comes_in_pages_the_newest_first(hub: FakeHub, client: HubClient) -> None:
    for number, when in enumerate((30.0, 10.0, 50.0, 20.0, 40.0)):
        hub.push(f"org/model-{number}", FILES, when=when)
    listed = client("[model.id for model in api.list_models(author='org', sort='last_modified')]")
    assert listed == ["org/model-2", "org/model-4", "org/model-0", "org/model-3", "org/model-1"]
    assert hub.asked == ["GET /api/models"] * 3


def test_a_commit_between_two_pages_hides_no_repository_that_was_to_come(hub: FakeHub, client: HubClient) -> None:
    for number in range(4):
        hub.push(f"org/model-{number}", FILES, when=100.0 - number)
    hub.fault("GET /api/models", Fault())
    hub.fault("GET /api/models", Before(lambda: hub.push("org/model-3", {}, when=200.0)))
    listed = client("[model.id for model in api.list_models(author='org')]")
    assert listed == ["org/model-0", "org/model-1", "org/model-2"]  # what is newer now is on the next listing


def test_a_listing_has_the_fields_that_were_asked_for(hub: FakeHub, client: HubClient) -> None:
    commit = hub.push("org/a", FILES, when=1.5)
    asked = "[[model.sha, model.last_modified, model.tags] for model in api.list_models({})]"
    assert client(asked.format("")) == [[None, None, client("api.model_info('org/a').tags")]]
    expanded = client(asked.format("expand=['sha', 'lastModified', 'gated', 'baseModels']"))
    assert expanded == [[commit, "1970-01-01 00:00:01.500000+00:00", None]]
    assert client(asked.format("full=True"))[0][0] == commit


def test_repositories_are_found_by_namespace_tag_and_name(hub: FakeHub, client: HubClient) -> None:
    hub.push("org/merged", FILES)
    hub.push("org/tuned", {"a.txt": b""}, tags=["base_model:org/base", "base_model:finetune:org/base"])
    hub.push("other/tuned", {"a.txt": b""})

    def listed(how: str) -> set[str]:
        return set(client(f"[model.id for model in api.list_models({how})]"))

    assert listed("author='org'") == {"org/merged", "org/tuned"}
    assert listed("filter='base_model:org/base'") == {"org/merged", "org/tuned"}
    assert listed("filter=['base_model:finetune:org/base']") == {"org/tuned"}
    assert listed("filter=['merged', 'transformers']") == {"org/merged"}
    assert listed("search='TUNED'") == {"org/tuned", "other/tuned"}


# ------------------------------------------------------------------------------------------------------- one repository


def test_information_has_what_the_card_claims_and_what_each_file_weighs(hub: FakeHub, client: HubClient) -> None:
    commit = hub.push("org/a", FILES, gated="auto")
    told = client("vars(api.model_info('org/a', files_metadata=True))")
    assert (told["sha"], told["gated"], told["private"], told["disabled"]) == (commit, "auto", False, False)
    assert {"safetensors", "transformers", "merged", "base_model:merge:org/base"} <= set(told["tags"])
    weights = client("[s for s in api.model_info('org/a', files_metadata=True).siblings if s.lfs][0].lfs.__dict__")
    blob = hub.repositories["org/a"].commits[commit].files["model.safetensors"]
    assert (weights["sha256"], weights["size"]) == (blob.sha256, len(WEIGHTS))


def test_a_tree_has_files_and_folders_and_pages(hub: FakeHub, client: HubClient) -> None:
    hub.push("org/a", FILES)
    listed = "sorted(entry.path for entry in api.list_repo_tree('org/a', {}))"
    assert client(listed.format("recursive=True")) == sorted([*FILES, "nested", "nested/deeper"])
    assert len(hub.asked) == 3
    assert client(listed.format("")) == ["README.md", "config.json", "model.safetensors", "nested"]
    assert client(listed.format("'nested', recursive=True")) == ["nested/deeper", "nested/deeper/tokens.txt"]
    assert client(listed.format("expand=True")) == ["README.md", "config.json", "model.safetensors", "nested"]
    infos = "[[info.path, info.blob_id, bool(info.lfs)] for info in api.get_paths_info('org/a', ['config.json', 'no'])]"
    assert client(infos) == [["config.json", "0967ef424bce6791893e9a57bb952f80fd536e93", False]]  # git hash-object


def test_histories_branches_and_tags(hub: FakeHub, client: HubClient) -> None:
    first = hub.push("org/a", FILES, when=10.0, title="first")
    hub.tag("org/a", "v1")
    second = hub.push("org/a", {}, when=5.0, title="second")  # by a clock that is behind
    third = hub.push("org/a", FILES, branch="try/this", when=20.0)
    history = client("[[c.commit_id, c.title, c.created_at.timestamp()] for c in api.list_repo_commits('org/a')]")
    assert history == [[second, "second", 5.0], [first, "first", 10.0]]
    refs = "[[ref.name, ref.target_commit] for ref in api.list_repo_refs('org/a').{}]"
    assert client(refs.format("branches")) == [["main", second], ["try/this", third]]
    assert client(refs.format("tags")) == [["v1", first]]
    for revision, commit in {"main": second, "v1": first, "try/this": third, first: first}.items():
        assert client("api.model_info('org/a', revision=revision).sha", revision=revision) == commit
    assert client.failure("api.model_info('org/a', revision='v2')") == ("RevisionNotFoundError", 404)


def test_a_snapshot_is_whole(hub: FakeHub, client: HubClient, tmp_path: Path) -> None:
    hub.push("org/a", FILES)
    hub.tag("org/a", "v1")
    hub.push("org/a", {"config.json": b"another"})
    assert content(client("snapshot_download('org/a', revision='v1')")) == FILES
    assert content(client("snapshot_download('org/a', local_dir=folder)", folder=tmp_path / "a")) == {
        "config.json": b"another"
    }
    assert client.failure("hf_hub_download('org/a', 'nothing.txt')") == ("RemoteEntryNotFoundError", 404)


def test_the_header_of_a_model_is_read_alone(hub: FakeHub, client: HubClient, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", tiny_base(), CONFIG)
    hub.push("org/a", content(str(folder)))
    names = client("sorted(next(iter(api.get_safetensors_metadata('org/a').files_metadata.values())).tensors)")
    assert names == sorted(tiny_base())
    assert any((request.range or "").startswith("bytes=0-") for request in hub.requests)


# ------------------------------------------------------------------------------------------------------- who may see it


def test_a_token_says_who_one_is(client: HubClient) -> None:
    assert client(f"{OWNER}.whoami()['name']") == "owner"
    assert client(f"[org['name'] for org in {OWNER}.whoami()['orgs']]") == ["org"]
    assert client.failure("api.whoami(token='wrong')") == ("HfHubHTTPError", 401)
    assert client.failure("HfApi(token='wrong').model_info('org/a')") == ("HfHubHTTPError", 401)


def test_a_private_repository_is_there_for_its_owners(hub: FakeHub, client: HubClient) -> None:
    hub.push("org/secret", FILES, private=True)
    for token in (None, "other"):
        assert client("[m.id for m in HfApi(token=token).list_models()]", token=token) == []
        gone = client.failure("HfApi(token=token).model_info('org/secret')", token=token)
        assert gone == ("RepositoryNotFoundError", 404)
    assert client("[m.id for m in HfApi(token='reader').list_models()]") == ["org/secret"]
    assert content(client("HfApi(token='reader').snapshot_download('org/secret')")) == FILES
    assert {request.token for request in hub.requests} == {None, "other", "reader"}


def test_a_gated_repository_is_seen_by_all_and_read_by_those_who_were_let_in(hub: FakeHub, client: HubClient) -> None:
    hub.push("org/gated", FILES, gated=True)
    assert client("api.model_info('org/gated').gated") == "manual"
    fetch = "HfApi(token='other').hf_hub_download('org/gated', 'config.json')"
    assert client.failure(fetch)[0] == "GatedRepoError"
    hub.repositories["org/gated"].granted.add("other")
    assert Path(client(fetch)).read_bytes() == FILES["config.json"]


def test_a_renamed_repository_is_found_under_its_old_name(hub: FakeHub, client: HubClient) -> None:
    hub.push("org/old", FILES)
    hub.rename("org/old", "org/new")
    assert client("api.model_info('org/old').id") == "org/new"
    assert content(client("snapshot_download('org/old')")) == FILES
    hub.push("org/old", {})  # the name is taken again
    assert client("api.model_info('org/old').id") == "org/old"


def test_what_was_deleted_or_replaced_is_gone(hub: FakeHub, client: HubClient) -> None:
    first = hub.push("org/a", FILES)
    second = hub.push("org/a", FILES, force=True)
    assert first != second
    gone = client.failure("api.model_info('org/a', revision=first)", first=first)
    assert gone == ("RevisionNotFoundError", 404)
    assert client("[c.commit_id for c in api.list_repo_commits('org/a')]") == [second]
    hub.delete("org/a")
    assert client.failure("api.model_info('org/a')") == ("RepositoryNotFoundError", 404)
