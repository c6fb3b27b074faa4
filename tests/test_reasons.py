"""The reasons: each one that the code can give is produced here for real, is in docs/verdicts.md, and says what works."""

import ast
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import repository
import torch
from fakehub import FakeHub
from support.command_line import check_command
from support.commands import start_forking
from support.gates import write_gate
from support.hub import NAMESPACE, OF_BASE, hub_merge
from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import CONFIG, Model, drop_adapter, fine_tuned, save_lone, save_model, save_sharded, tiny_base

from mergd.daemon.admission import ROOM
from mergd.daemon.deciding import refuse
from mergd.daemon.recovery import STRIKES
from mergd.daemon.requests import Refuse
from mergd.daemon.settings import Settings, keys
from mergd.plugins.formats.model_folder import INDEX
from mergd.state.errors import NotPermitted
from mergd.state.history import History
from mergd.state.records import Checkpoint

Make = Callable[..., Sandbox]  # makes a merge, with these settings
PAGE = repository.ROOT / "docs" / "verdicts.md"
FAR = 0.7


def after(merge: Sandbox, name: str = "new") -> Checkpoint:
    """Return a checkpoint's newest row after a run."""
    return [row for row in merge.fold_all() if row.name == name][-1]


def dropped(merge: Sandbox, **changes: torch.Tensor | None) -> Checkpoint:
    """Return the row of a fine-tune with these weights changed, or left out; two underscores are a point."""
    model = merge.fine_tuned(1) | {name.replace("__", "."): value for name, value in changes.items()}
    merge.drop("new", {name: value for name, value in model.items() if value is not None})
    return after(merge)


def folded_five(merge: Sandbox) -> Sandbox:
    for seed in range(5):
        merge.drop(f"old-{seed}", 20 + seed)
    merge.fold_all()
    return merge


# ------------------------------------------------------------------------------ what headers show, and files, and names


def untied(make: Make) -> Checkpoint:
    tied = tiny_base() | {"lm_head.weight": tiny_base()["embed_tokens.weight"].clone()}
    merge = make(tied, CONFIG | {"tie_word_embeddings": True})
    merge.drop("new", fine_tuned(tied, 1))
    return after(merge)


def adapter(make: Make, **config: Any) -> Checkpoint:
    merge = make()
    drop_adapter(merge.watch / "new", **config)
    return after(merge)


def beside(make: Make, name: str, data: bytes) -> Checkpoint:
    """Return the row of a folder with nothing but this file."""
    merge = make()
    (merge.watch / "new").mkdir()
    (merge.watch / "new" / name).write_bytes(data)
    return after(merge)


def format_failed(make: Make, patch: pytest.MonkeyPatch) -> Checkpoint:
    def fail(place: Path, most: int) -> None:
        raise RecursionError

    merge = make()
    patch.setattr("mergd.daemon.admission.read_contents", fail)
    return dropped(merge)


def no_object(make: Make) -> Checkpoint:
    merge = make()
    (drop_adapter(merge.watch / "new") / "adapter_config.json").write_text("[]")
    return after(merge)


def link(make: Make) -> Checkpoint:
    merge = make()
    (merge.watch / "new").mkdir()
    (merge.watch / "new" / "model.safetensors").symlink_to(merge.base / "model.safetensors")
    return after(merge)


def too_large(make: Make) -> Checkpoint:
    merge = make()
    save_lone(
        merge.watch / "new.safetensors", merge.fine_tuned(1) | {"buffer": torch.zeros(ROOM + 1, dtype=torch.int8)}
    )
    return after(merge, "new.safetensors")


def too_many_tensors(make: Make) -> Checkpoint:
    merge = make()
    many = {f"buffer.{k}": torch.zeros(1, dtype=torch.int8) for k in range(2000)}
    save_lone(merge.watch / "new.safetensors", merge.fine_tuned(1) | many)
    return after(merge, "new.safetensors")


def nothing_changed(make: Make) -> Checkpoint:
    merge = make(skip=["layer.matrix.*"])
    drop_adapter(merge.watch / "new")
    return after(merge)


def a_run(merge: Sandbox, *steps: int, final: bool = False) -> None:
    """Write steps of one training, and its final model."""
    for step in steps:
        place = save_model(merge.watch / "run" / f"checkpoint-{step}", merge.fine_tuned(step))
        (place / "trainer_state.json").write_text("{}")
    if final:
        save_model(merge.watch / "run", merge.fine_tuned(99))


def run_counted(make: Make) -> Checkpoint:
    merge = make(run_quiet=0)
    a_run(merge, 1)
    merge.fold_all()
    a_run(merge, 2)
    return after(merge, "run/checkpoint-2")


def replace_later(make: Make) -> Checkpoint:
    merge = make(on_change="replace")
    dropped(merge)
    merge.drop("other", 5)
    merge.fold_all()
    save_lone(merge.watch / "new" / "model.safetensors", merge.fine_tuned(2))
    return after(merge)


def unknown_format(make: Make) -> Checkpoint:
    merge = make()
    os.mkfifo(merge.watch / "new.safetensors")
    return after(merge, "new.safetensors")


def not_a_file(make: Make) -> Checkpoint:
    merge = make()
    (merge.watch / "new").mkdir()
    os.mkfifo(merge.watch / "new" / "model.safetensors")
    return after(merge)


def unreadable(make: Make) -> Checkpoint:
    merge = make()
    (merge.watch / "new.safetensors").write_bytes(b"\xff" * 64)
    return after(merge, "new.safetensors")


def sharded(make: Make, **weight_map: str) -> Checkpoint:
    merge = make()
    place = save_sharded(merge.watch / "new", merge.fine_tuned(1))
    index = json.loads((place / INDEX).read_text())
    index["weight_map"] |= {name.replace("__", "."): shard for name, shard in weight_map.items()}
    (place / INDEX).write_text(json.dumps(index))
    return after(merge)


def existing(make: Make, how: str = "hold") -> Checkpoint:
    def drop_first(merge: Sandbox) -> None:
        save_model(merge.watch / "new", merge.fine_tuned(1))

    return make(existing=how, before=drop_first).checkpoints()[0]


def cannot_read(make: Make, patch: pytest.MonkeyPatch) -> Checkpoint:
    def deny(place: Path, most: int) -> None:
        raise NotPermitted(f"cannot read {place}", "let the daemon's user read it: chmod")

    merge = make()
    patch.setattr("mergd.daemon.admission.read_contents", deny)  # root can read everything
    return dropped(merge)


# --------------------------------------------------------------------------------------------------- what content shows


def overflow(make: Make) -> Checkpoint:
    merge = make(out_dtype="float16", limits=NO_LIMITS)
    return dropped(merge, layer__matrix__bias=torch.full((6,), 1e6))


def far_weight(make: Make) -> Checkpoint:
    return dropped(make(limits=NO_LIMITS | {"weight_norm": 1.0}), layer__wide__weight=10 * torch.ones(4, 9))


def far_from_base(make: Make) -> Checkpoint:
    merge = make()
    merge.drop("new", merge.fine_tuned(1, FAR))
    return after(merge)


def unusual_norm(make: Make) -> Checkpoint:
    merge = folded_five(make())
    merge.drop("new", merge.fine_tuned(1, 1e-3))
    return after(merge)


def against_merge(make: Make) -> Checkpoint:
    merge = make()
    merge.drop("old", 1)
    merge.fold_all()
    back = {name: 2 * t - merge.fine_tuned(1)[name] if t.is_floating_point() else t for name, t in merge.model.items()}
    merge.drop("new", back)
    return after(merge)


def near_copy(make: Make) -> Checkpoint:
    merge = make()
    merge.drop("old", 1)
    merge.fold_all()
    merge.drop("new", {name: t * 1.001 if t.is_floating_point() else t for name, t in merge.fine_tuned(1).items()})
    return after(merge)


def too_much_of_one(make: Make) -> Checkpoint:
    merge = folded_five(make(limits={"share": 0.5}))
    with History(merge.store.database, write=True) as history:  # only root could give files away
        history._db.execute("update contributions set contributor = 'somebody' where version = 1")
    return dropped(merge)


def too_many(make: Make) -> Checkpoint:
    merge = make(limits={"per_day": 1})
    merge.drop("old", 2)
    merge.fold_all()
    return dropped(merge)


# ------------------------------------------------------------------------------------------- what happened to it before


def changed(make: Make, **settings: object) -> Checkpoint:
    merge = make(**settings)
    dropped(merge)
    save_lone(merge.watch / "new" / "model.safetensors", merge.fine_tuned(2))
    return after(merge)


def sidecar(make: Make) -> Checkpoint:
    merge = make(trust_sidecar=True)
    (merge.drop("new", 1) / "checkpoint.toml").write_text("share = -2.0")
    return after(merge)


def known_content(make: Make) -> Checkpoint:
    merge = make()
    merge.drop("old", 1)
    merge.drop("z-new", 1)
    return after(merge, "z-new")


def no_verdict(make: Make, patch: pytest.MonkeyPatch) -> Checkpoint:
    merge = make()
    merge.drop("new", 1)
    patch.setattr("mergd.daemon.worker.RETRY_AFTER", 0.0)
    patch.setattr("mergd.daemon.drafting.fold", lambda *_: 1 / 0)
    for _ in range(STRIKES):
        row = after(merge)
    return row


def refused_by_hand(make: Make) -> Checkpoint:
    merge = make()
    merge.drop("new", merge.fine_tuned(1, FAR))
    merge.fold_all()
    with History(merge.store.database, write=True) as history:
        refuse(Refuse(checkpoint="new", why="trained on the test set"), history, "a test")
    return after(merge)


# ------------------------------------------------------------------------------------------- what a gate's program says


def said_by_a_gate(make: Make, then: str, **table: Any) -> Checkpoint:
    """Return the row of what a gate's program looked at, whose only metric is 1 for the base model."""
    merge = make()
    gate = write_gate(merge.root / "gate.py", f"metrics['bias']['value'] = 1\nif asked['version']: {then}") | table
    entries = "\n".join(f"{key} = {json.dumps(value)}" for key, value in gate.items())
    merge.config.write_text(f"{merge.config.read_text()}\n[gate.eval]\n{entries}\n")
    return dropped(merge)


def incomplete(make: Make) -> Checkpoint:
    root = make().root / "far"
    root.mkdir()
    with FakeHub() as hub:
        merge = hub_merge(root, hub)
        hub.push(f"{NAMESPACE}/new", {"config.json": b"{}"}, tags=[OF_BASE])
        merge.once()
        (row,) = merge.checkpoints()
    return row


# A reason's code, its verdict, and what produces it. Whoever adds a reason adds a line here and one in docs/verdicts.md.
Case = Callable[[Make, pytest.MonkeyPatch], Checkpoint]
CASES: dict[str, tuple[str, Case]] = {
    "missing-weights": ("refused", lambda make, _: dropped(make(), layer__matrix__bias=None)),
    "extra-weights": ("refused", lambda make, _: dropped(make(), head__weight=torch.zeros(2))),
    "shape": ("refused", lambda make, _: dropped(make(), layer__matrix__bias=torch.zeros(7))),
    "dtype": ("refused", lambda make, _: dropped(make(), layer__matrix__bias=torch.zeros(6, dtype=torch.int8))),
    "untied": ("refused", lambda make, _: untied(make)),
    "adapter-kind": ("refused", lambda make, _: adapter(make, peft_type="IA3")),
    "bad-adapter": ("refused", lambda make, _: adapter(make, rank_pattern={"matrix": 2})),
    "bad-json": ("refused", lambda make, _: no_object(make)),
    "format-failed": ("refused", format_failed),
    "link": ("refused", lambda make, _: link(make)),
    "nothing-changed": ("refused", lambda make, _: nothing_changed(make)),
    "pickle": ("refused", lambda make, _: beside(make, "pytorch_model.bin", b"never opened")),
    "quantised": ("refused", lambda make, _: beside(make, "q4.gguf", b"GGUF")),
    "too-large": ("refused", lambda make, _: too_large(make)),
    "too-many-tensors": ("refused", lambda make, _: too_many_tensors(make)),
    "vocabulary": ("refused", lambda make, _: dropped(make(), embed_tokens__weight=torch.zeros(12, 6))),
    "unknown-format": ("refused", lambda make, _: unknown_format(make)),
    "not-a-file": ("refused", lambda make, _: not_a_file(make)),
    "unreadable": ("refused", lambda make, _: unreadable(make)),
    "bad-index": ("refused", lambda make, _: sharded(make, layer__matrix__bias="../elsewhere.safetensors")),
    "incomplete": ("refused", lambda make, _: incomplete(make)),
    "needs-fisher": ("refused", lambda make, _: dropped(make(rule="fisher"))),
    "not-finite": ("refused", lambda make, _: dropped(make(), layer__matrix__bias=torch.full((6,), torch.nan))),
    "overflow": ("refused", lambda make, _: overflow(make)),
    "refused-by-hand": ("refused", lambda make, _: refused_by_hand(make)),
    "existing": ("held", lambda make, _: existing(make)),
    "changed": ("held", lambda make, _: changed(make)),
    "no-verdict": ("held", no_verdict),
    "run-counted": ("held", lambda make, _: run_counted(make)),
    "replace-later": ("held", lambda make, _: replace_later(make)),
    "sidecar": ("held", lambda make, _: sidecar(make)),
    "wild-adapter": ("held", lambda make, _: adapter(make, lora_alpha=1000)),
    "far-from-base": ("held", lambda make, _: far_from_base(make)),
    "far-weight": ("held", lambda make, _: far_weight(make)),
    "unusual-norm": ("held", lambda make, _: unusual_norm(make)),
    "against-merge": ("held", lambda make, _: against_merge(make)),
    "near-copy": ("held", lambda make, _: near_copy(make)),
    "too-much-of-one": ("held", lambda make, _: too_much_of_one(make)),
    "too-many": ("held", lambda make, _: too_many(make)),
    "gate-refused": ("refused", lambda make, _: said_by_a_gate(make, "sys.exit(65)")),
    "gate-failed": ("held", lambda make, _: said_by_a_gate(make, "sys.exit(1)")),
    "metric-missing": ("held", lambda make, _: said_by_a_gate(make, "metrics = {'new': metrics['bias']}")),
    "metric-drop": ("held", lambda make, _: said_by_a_gate(make, "metrics['bias']['value'] = 0.98")),
    "metric-total-drop": (
        "held",
        lambda make, _: said_by_a_gate(make, "metrics['bias']['value'] = 0.9", drop=0.5),
    ),
    "cannot-read": ("blocked", cannot_read),
    "known-content": ("folded", lambda make, _: known_content(make)),
}


@pytest.fixture(scope="session", autouse=True)
def _forking() -> None:
    start_forking()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a merge; `before` is called with it before its init."""

    def made(
        model: Model | None = None,
        config: dict[str, object] = CONFIG,
        before: Callable[[Sandbox], None] = lambda merge: None,
        **settings: object,
    ) -> Sandbox:
        before(Sandbox(tmp_path, model or tiny_base()))
        return make_merge(tmp_path, model, config, **settings)

    return made


@pytest.mark.parametrize("code", CASES)
def test_each_reason_is_given_and_what_it_says_to_do_can_be_done(
    make: Make, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    state, case = CASES[code]
    row = case(make, monkeypatch)
    assert (row.state, [reason.code for reason in row.reasons]) == (state, [code])
    (reason,) = row.reasons
    assert all((reason.found, reason.expected, reason.next_step))
    text = f"{reason.found}; {reason.expected}; {reason.next_step}"
    commands = list(shown_commands(text))
    for command in commands:
        check_command(command)
    assert settings_in(text) <= keys().keys() | Settings.model_fields.keys()
    if state == "held":
        assert [command.split()[0] for command in commands][:2] == ["approve", "refuse"]


def shown_commands(text: str) -> Iterator[str]:
    """Yield what follows `mergd` on each command line that a reason shows."""
    for part in text.split("; "):
        if match := re.search(r"(?:^|[:,] )mergd (.*)", part):
            yield match[1]


def settings_in(text: str) -> set[str]:
    """Return the settings that a reason names."""
    return set(re.findall(r"limits\.\w+|\b(?<=set )\w+(?= to\b)|\b\w+(?= = )", text))


def test_the_texts_are_looked_through() -> None:
    text = "to fold it: mergd approve 'a b'; else: mergd refuse x --why TEXT; at most 2 (limits.norm), set quiet to 5s"
    assert list(shown_commands(text)) == ["approve 'a b'", "refuse x --why TEXT"]
    assert settings_in(text) == {"limits.norm", "quiet"}


def test_what_init_ignores_can_be_folded_by_its_reason(make: Make) -> None:
    row = existing(make, "ignore")
    assert row.state == "refused"
    (command,) = shown_commands(row.reasons[0].next_step)
    check_command(command)


def test_other_content_that_is_refused_can_be_folded_by_its_reason(make: Make) -> None:
    row = changed(make, on_change="ignore")
    assert (row.state, [reason.code for reason in row.reasons]) == ("refused", ["changed"])
    (command,) = shown_commands(row.reasons[0].next_step)
    check_command(command)
    assert command.split()[0] == "fold"  # what is refused cannot be approved


# ---------------------------------------------------------------------------------------------------- code and page


def codes_in_the_code() -> set[str]:
    """Return the codes of all reasons that the package makes; each must be written out where it is made."""
    found = set()
    for path in repository.module_files():
        for node in ast.walk(ast.parse((repository.ROOT / path).read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "Reason"
                and node.args
            ):
                code = ast.literal_eval(node.args[0])  # fails where a code is not written out
                assert isinstance(code, str), f"{path}:{node.lineno}"
                found.add(code)
    return found


def page_rows() -> dict[str, str]:
    """Return the page's verdict of each code."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()]
    return {row[0].strip("`"): row[1] for row in cells if re.fullmatch(r"`[a-z-]+`", row[0])}


def test_every_reason_in_the_code_is_produced_here_and_stands_on_the_page() -> None:
    assert codes_in_the_code() == CASES.keys() == page_rows().keys()


def test_the_page_says_the_verdict_that_there_is() -> None:
    assert {code: verdict.split(",")[0] for code, verdict in page_rows().items()} == {
        code: state for code, (state, _) in CASES.items()
    }


def test_the_page_names_only_settings_that_exist() -> None:
    text = PAGE.read_text()
    assert settings_in(text) <= keys().keys() | Settings.model_fields.keys()
    assert set(re.findall(r"`(limits\.\w+)`", text)) == {key for key in keys() if key.startswith("limits.")}
