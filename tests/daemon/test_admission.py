"""Admission: each reason for which a checkpoint is refused, from headers alone, and what is no reason."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.models import Model, drop_adapter, fine_tuned, save_lone, save_model, save_sharded, tiny_base

from mergd.daemon.admission import Admission
from mergd.daemon.base import Base
from mergd.daemon.base import examine as examine_base
from mergd.daemon.progress import Progress
from mergd.daemon.settings import Settings
from mergd.plugins.sources.directory import Directory
from mergd.state.errors import Busy, NotPermitted
from mergd.state.records import Verdict

SETTINGS = Settings(base_model="base", watch=Path("watch"), state=Path("state"))


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return examine_base(save_model(tmp_path / "base", tiny_base()), Progress())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the checkpoint is put."""
    (tmp_path / "watch").mkdir()
    return tmp_path / "watch" / "checkpoint"


def verdict_on(place: Path, base: Base) -> Verdict:
    """Return the verdict on what lies at a place."""
    sighting = Directory(place.parent).sight(place)
    assert sighting is not None
    candidate, verdict = Admission(base, SETTINGS).examine(sighting)
    assert (candidate is not None) or verdict.decision == "refused"
    return verdict


def refused_for(place: Path, base: Base) -> dict[str, str]:
    """Return what was found, by the reason's code; every reason must say what to do."""
    verdict = verdict_on(place, base)
    assert verdict.decision == "refused"
    assert all(reason.expected and reason.next_step for reason in verdict.reasons)
    return {reason.code: reason.found for reason in verdict.reasons}


def without(model: Model, *names: str) -> Model:
    return {name: tensor for name, tensor in model.items() if name not in names}


# ------------------------------------------------------------------------------------------------------- admitted


def test_a_fine_tune_of_the_base_is_admitted_in_any_files(base: Base, tmp_path: Path) -> None:
    model = fine_tuned(tiny_base(), 1)
    for saved in (
        save_model(tmp_path / "watch" / "one", model),
        save_model(tmp_path / "watch" / "bare", model, None),
        save_sharded(tmp_path / "watch" / "three", model, 3),
        save_lone(tmp_path / "watch" / "lone.safetensors", dict(reversed(model.items()))),
    ):
        assert verdict_on(saved, base).decision == "admitted"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_any_floating_dtype_is_admitted(base: Base, place: Path, dtype: torch.dtype) -> None:
    model = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tiny_base().items()}
    assert verdict_on(save_model(place, model), base).decision == "admitted"


def test_integer_buffers_may_be_missing_or_more(base: Base, place: Path) -> None:
    less = without(tiny_base(), "position_ids")
    assert verdict_on(save_model(place, less), base).decision == "admitted"
    more = tiny_base() | {"token_type_ids": torch.zeros(5, dtype=torch.int64), "mask": torch.ones(3, dtype=torch.bool)}
    assert verdict_on(save_model(place, more), base).decision == "admitted"


def test_nothing_but_weights_is_looked_at(base: Base, place: Path) -> None:
    save_model(place, tiny_base(), {"model_type": "another", "hidden_size": 7})
    for name in ("evil.py", "training_args.bin", "optimizer.pt"):
        (place / name).write_text("import os")
    (place / "subfolder").mkdir()
    assert verdict_on(place, base).decision == "admitted"


# -------------------------------------------------------------------------------------------------------- refused


def test_missing_weights_are_counted_and_named(base: Base, place: Path) -> None:
    save_model(place, without(tiny_base(), "layer.matrix.bias", "layer.tall.weight"))
    found = refused_for(place, base)
    assert found.keys() == {"missing-weights"}
    assert "2 of 5" in found["missing-weights"]
    assert "layer.matrix.bias" in found["missing-weights"]


def test_extra_weights_are_named(base: Base, place: Path) -> None:
    save_model(place, tiny_base() | {"value_head.weight": torch.zeros(1, 6)})
    found = refused_for(place, base)
    assert found.keys() == {"extra-weights"}
    assert "value_head.weight" in found["extra-weights"]


def test_other_shapes_are_shown_beside_the_bases(base: Base, place: Path) -> None:
    save_model(place, tiny_base() | {"layer.tall.weight": torch.zeros(12, 6), "layer.matrix.bias": torch.zeros(6, 1)})
    found = refused_for(place, base)
    assert found.keys() == {"shape"}
    assert "layer.tall.weight [12, 6] for [9, 4]" in found["shape"]
    assert "layer.matrix.bias [6, 1] for [6]" in found["shape"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_quantised_weights_are_refused(base: Base, place: Path, dtype: torch.dtype) -> None:
    save_model(place, tiny_base() | {"layer.matrix.weight": torch.zeros(6, 6).to(dtype)})
    assert refused_for(place, base).keys() == {"dtype"}


def test_quantised_weights_beside_the_models_are_refused(base: Base, place: Path) -> None:
    save_model(place, tiny_base() | {"layer.matrix.weight_scale": torch.ones(6).to(torch.float8_e8m0fnu)})
    assert "layer.matrix.weight_scale is F8_E8M0" in refused_for(place, base)["dtype"]


def test_far_more_tensors_than_the_base_has_are_refused_before_they_cost_anything(base: Base, place: Path) -> None:
    few = {f"buffer.{k}": torch.zeros(1, dtype=torch.int8) for k in range(1000)}
    assert verdict_on(save_model(place, tiny_base() | few), base).decision == "admitted"
    save_model(place, tiny_base() | few | {"one.more": torch.zeros(1, dtype=torch.int8)})
    assert "more than 1,006 tensors" in refused_for(place, base)["too-many-tensors"]
    shutil.rmtree(place)
    save_sharded(place, tiny_base() | few | {"one.more": torch.zeros(1, dtype=torch.int8)}, 2)
    assert refused_for(place, base).keys() == {"bad-index"}


def test_many_bytes_of_buffers_are_refused(base: Base, place: Path) -> None:
    save_model(place, tiny_base() | {"buffer": torch.zeros(1, 64 * 2**20, dtype=torch.int8)})
    assert verdict_on(place, base).decision == "admitted"
    save_model(place, tiny_base() | {"buffer": torch.zeros(1, 64 * 2**20 + 1, dtype=torch.int8)})
    assert "67.1 MB" in refused_for(place, base)["too-large"]


def test_every_reason_is_given_at_once(base: Base, place: Path) -> None:
    model = without(tiny_base(), "layer.wide.weight") | {
        "more.weight": torch.zeros(3),
        "layer.matrix.bias": torch.zeros(7),
        "layer.tall.weight": torch.zeros(9, 4, dtype=torch.int8),
    }
    save_model(place, model)
    assert refused_for(place, base).keys() == {"missing-weights", "extra-weights", "shape", "dtype"}


def test_a_reason_names_a_few_of_many(tmp_path: Path, place: Path) -> None:
    many = {f"layer.{k:04d}.bias": torch.zeros(2) for k in range(300)}
    base = examine_base(save_model(tmp_path / "many", many), Progress())
    save_model(place, {"layer.0000.bias": torch.zeros(2)})
    found = refused_for(place, base)["missing-weights"]
    assert "299 of 300" in found
    assert "and 289 more" in found
    assert len(found) < 500


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 64, b"\x08" + bytes(7) + b"no json!", b"\x02" + bytes(7) + b"{}more"],
    ids=["length", "json", "end"],
)
def test_a_file_that_is_no_safetensors_is_unreadable(base: Base, place: Path, data: bytes) -> None:
    place.mkdir()
    (place / "model.safetensors").write_bytes(data)
    assert refused_for(place, base).keys() == {"unreadable"}
    lone = place.parent / "lone.safetensors"
    lone.write_bytes(data)
    assert refused_for(lone, base).keys() == {"unreadable"}


def test_an_adapter_of_an_unknown_kind_is_refused_with_the_way_out(base: Base, place: Path) -> None:
    place.mkdir()
    (place / "adapter_config.json").write_text("{}")
    save_lone(place / "adapter_model.safetensors", {"lora_A.weight": torch.zeros(2, 2)})
    assert refused_for(place, base).keys() == {"adapter-kind"}
    assert "merge_and_unload" in verdict_on(place, base).reasons[0].next_step


def edit_index(place: Path, **changes: str) -> None:
    path = place / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))


def test_an_index_that_names_other_shards_is_refused(base: Base, place: Path) -> None:
    save_sharded(place, tiny_base())
    edit_index(place, **{"layer.matrix.bias": "model-00002-of-00002.safetensors"})
    edit_index(place, **{"embed_tokens.weight": "model-00002-of-00002.safetensors"})
    assert refused_for(place, base).keys() == {"bad-index"}


def test_an_index_that_names_a_weight_that_is_not_there_is_refused(base: Base, place: Path) -> None:
    save_sharded(place, tiny_base())
    edit_index(place, ghost="model-00001-of-00002.safetensors")
    assert refused_for(place, base).keys() == {"bad-index"}


@pytest.mark.parametrize("shard", ["../base/model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "."])
def test_an_index_that_leads_elsewhere_is_refused(base: Base, place: Path, shard: str) -> None:
    save_sharded(place, tiny_base())
    edit_index(place, **{"layer.matrix.bias": shard})
    assert refused_for(place, base).keys() == {"bad-index"}


@pytest.mark.parametrize("weight_map", [{"a": 7}, {"a": None}, {"a": ["b"]}])
def test_an_index_of_no_names_is_refused(base: Base, place: Path, weight_map: dict[str, object]) -> None:
    save_sharded(place, tiny_base())
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert refused_for(place, base).keys() == {"bad-index"}


def test_an_index_beyond_all_bounds_is_refused_unread(base: Base, place: Path) -> None:
    save_sharded(place, tiny_base())
    os.truncate(place / "model.safetensors.index.json", 2**30)
    assert refused_for(place, base).keys() == {"unreadable"}


def test_what_is_no_file_is_refused_without_blocking(base: Base, place: Path) -> None:
    place.mkdir()
    os.mkfifo(place / "model.safetensors")
    assert refused_for(place, base).keys() == {"not-a-file"}


# ------------------------------------------------------------------------------------------------------ no verdict


def test_what_is_incomplete_is_waited_for(base: Base, place: Path) -> None:
    save_sharded(place, tiny_base(), 3)
    second = place / "model-00002-of-00003.safetensors"
    data = second.read_bytes()
    for size in (0, 5, 40, len(data) - 1):
        second.write_bytes(data[:size])
        with pytest.raises(Busy, match="is missing"):
            verdict_on(place, base)
    second.unlink()
    with pytest.raises(Busy, match=r"waits for shard model-00002-of-00003.safetensors \(1 of 3"):
        verdict_on(place, base)
    second.write_bytes(data)
    (place / "model.safetensors.index.json").write_text('{"weight_map": {')
    with pytest.raises(Busy, match="to be whole"):
        verdict_on(place, base)
    (place / "model.safetensors.index.json").unlink()
    with pytest.raises(Busy, match=r"waits for model\.safetensors\.index\.json"):
        verdict_on(place, base)


def test_an_empty_folder_waits(base: Base, place: Path) -> None:
    place.mkdir()
    with pytest.raises(Busy, match=r"waits for model\.safetensors"):
        verdict_on(place, base)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "last.ckpt"])
def test_a_folder_of_pickles_is_refused_with_the_command_that_converts_them(base: Base, place: Path, name: str) -> None:
    place.mkdir()
    (place / name).write_bytes(b"never opened")
    (place / "optimizer.pt").write_bytes(b"a trainer's own")
    (reason,) = verdict_on(place, base).reasons
    assert (reason.code, name in reason.found) == ("pickle", True)
    assert shlex.split(reason.next_step)[-1] == name


@pytest.mark.parametrize(("name", "code"), [("model.bin", "pickle"), ("last.ckpt", "pickle"), ("q4.gguf", "quantised")])
def test_a_lone_file_of_another_kind_is_refused_by_name(base: Base, place: Path, name: str, code: str) -> None:
    (place.parent / name).write_bytes(b"never opened")
    assert refused_for(place.parent / name, base).keys() == {code}


def test_pickles_beside_safetensors_are_ignored(base: Base, place: Path) -> None:
    save_model(place, tiny_base())
    (place / "pytorch_model.bin").write_bytes(b"never opened")
    assert verdict_on(place, base).decision == "admitted"


def test_the_command_that_converts_a_pickle_makes_a_checkpoint(base: Base, place: Path) -> None:
    place.mkdir()
    torch.save(tiny_base(), place / "pytorch_model.bin")
    (reason,) = verdict_on(place, base).reasons
    command = shlex.split(reason.next_step.partition(": ")[2])
    subprocess.run([sys.executable, *command[1:]], cwd=place, check=True)
    assert verdict_on(place, base).decision == "admitted"


def test_what_went_away_since_it_was_seen_is_waited_for(base: Base, place: Path) -> None:
    lone = save_lone(place.parent / "lone.safetensors", tiny_base())
    seen = [Directory(place.parent).sight(at) for at in (save_model(place, tiny_base()), lone)]
    shutil.rmtree(place)
    lone.unlink()
    for sighting in seen:
        assert sighting is not None
        with pytest.raises(Busy):
            Admission(base, SETTINGS).examine(sighting)


def test_a_pointer_of_git_lfs_waits_for_the_weights(base: Base, place: Path) -> None:
    place.mkdir()
    (place / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    with pytest.raises(Busy, match="git-lfs") as raised:
        verdict_on(place, base)
    assert "git lfs pull" in raised.value.hint


def test_what_cannot_be_read_is_no_verdict(base: Base, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(place, tiny_base())
    real = os.open

    def not_permitted(path: str, *arguments: int, **options: int) -> int:
        if str(path).startswith(str(place)):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", not_permitted)
    with pytest.raises(NotPermitted, match="mode 0"):
        verdict_on(place, base)


# ------------------------------------------------------------------------------------------------------------- links


def test_links_that_lead_elsewhere_are_refused(base: Base, place: Path, tmp_path: Path) -> None:
    secret = save_lone(tmp_path / "secret.safetensors", tiny_base())
    place.mkdir()
    (place / "model.safetensors").symlink_to(secret)
    assert refused_for(place, base).keys() == {"link"}


def test_a_snapshot_in_the_hubs_cache_leads_to_its_blobs(base: Base, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    save_lone(repository / "blobs" / "abc", tiny_base())
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert verdict_on(snapshot, base).decision == "admitted"
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(save_lone(tmp_path / "other.safetensors", tiny_base()))
    assert refused_for(snapshot, base).keys() == {"link"}


def test_a_place_that_is_a_link_itself_is_what_it_leads_to(base: Base, place: Path, tmp_path: Path) -> None:
    place.symlink_to(save_model(tmp_path / "elsewhere", tiny_base()))
    assert verdict_on(place, base).decision == "admitted"


# ------------------------------------------------------------------------------------------- what could be mistaken


def test_the_command_that_converts_a_pickle_takes_any_name(base: Base, place: Path, tmp_path: Path) -> None:
    place.mkdir()
    name = f"it's $(touch {tmp_path / 'ran'}).bin"
    torch.save(tiny_base(), place / "model.bin")
    (place / "model.bin").rename(place / name.replace("/", ""))
    (reason,) = verdict_on(place, base).reasons
    command = reason.next_step.partition(": ")[2].replace("python", sys.executable, 1)
    subprocess.run(["bash", "-c", command], cwd=place, check=True)
    assert not (tmp_path / "ran").exists()
    assert verdict_on(place, base).decision == "admitted"


HEADS = ("qa_outputs.weight", "text_projection.weight", "v_head.weight", "class_decoder.weight", "project.weight")


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("rows", [2, 11])
def test_a_task_head_is_never_taken_for_an_embedding(tmp_path: Path, name: str, rows: int) -> None:
    model = tiny_base() | {"token_type_embeddings.weight": torch.zeros(2, 6)}
    base = examine_base(save_model(tmp_path / "base", model), Progress())
    place = save_model(tmp_path / "watch" / "checkpoint", model | {name: torch.ones(rows, 6)})
    assert refused_for(place, base).keys() == {"extra-weights"}


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "pytorch_lora_weights.safetensors", "tf_model.h5"])
def test_weights_under_another_name_are_refused_by_it(base: Base, place: Path, name: str) -> None:
    place.mkdir()
    save_lone(place / name, tiny_base())
    assert name in refused_for(place, base)["unknown-format"]


def test_a_finished_configuration_that_is_no_json_is_refused(base: Base, place: Path) -> None:
    drop_adapter(place)
    (place / "adapter_config.json").write_text("{'peft_type': 'LORA'}\n")
    assert refused_for(place, base).keys() == {"bad-json"}


def test_more_shards_than_can_be_open_are_refused(base: Base, place: Path) -> None:
    names = [f"model-{k:05d}-of-00600.safetensors" for k in range(600)]
    place.mkdir()
    for name in names:
        save_lone(place / name, {})
    index = {"weight_map": {f"w{k}": name for k, name in enumerate(names)}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "600 shards" in refused_for(place, base)["bad-index"]


def test_what_a_configuration_calls_its_method_is_shown_short(base: Base, place: Path) -> None:
    save_model(place, tiny_base(), {"quantization_config": {"quant_method": "\x1b[31m" + "x" * 10**5}})
    found = refused_for(place, base)["quantised"]
    assert len(found) < 500
    assert found.isprintable()
