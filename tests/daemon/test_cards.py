"""The model card and the manifest of a published folder: true, harmless whatever things are called, and the same anywhere."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token
from peft import LoraConfig
from support.adapters import llama, save_adapter, save_base, weights_of
from support.commands import mergd, start_forking
from support.merges import NO_LIMITS, Sandbox, make_merge, set_in, writable
from support.models import save_model, tiny_base
from transformers import LlamaForCausalLM

from mergd.daemon import ancestry, drafting, initialise, opening
from mergd.daemon.ancestry import Line, Lines, line_of, made_of
from mergd.daemon.cards import CARD, MANIFEST, WORDS, card_of
from mergd.daemon.front_matter import licence_in
from mergd.daemon.progress import Progress
from mergd.daemon.requests import Replay
from mergd.daemon.settings import validate
from mergd.state.history import History
from mergd.state.manifests import named, text_of
from mergd.state.records import Checkpoint, Totals, Version
from mergd.state.wording import shown

HOSTILE = [
    "a|b", "two\nlines", "`rm -rf`", "```", "<script>alert(1)<", "---", "key: value", "🦜" * 40, "x" * 240, "[a](b)",
    "![a](b)", "@all", "*b* _c_ ~~d~~ e", "&lt;", "\u202etxt", "!!python", "# head", "$x$", "https:www.evil.com", "\\", "\\|",
    "{{ x }}", "'\"", "base_model: evil", "\x1b[31mred", "- item", "1. item", "é\u0301", "www.evil.com",
    "WWW.evil.com",
]  # fmt: skip
PLAIN = {"base_model_relation": "merge", "tags": ["merge", "mergd"], "library_name": "transformers"}
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(scope="module", autouse=True)
def _forking() -> None:
    start_forking()


def folded(root: Path, *names: str, **settings: Any) -> Sandbox:
    """Return a merge of checkpoints with these names, folded one after the other."""
    merge = make_merge(root, limits=NO_LIMITS, **settings)
    fold(merge, *names)
    return merge


def fold(merge: Sandbox, *names: str) -> None:
    first = len(merge.checkpoints()) + 1
    for seed, name in enumerate(names, start=first):
        save_model(merge.root / f"aside-{seed}", merge.fine_tuned(seed)).rename(merge.watch / name)
        merge.fold_all()
    assert set(merge.states().values()) == {"folded"}


def card(merge: Sandbox, version: int | None = None) -> str:
    return ((merge.store.model(version) if version else merge.store.current) / CARD).read_text()


def manifest(merge: Sandbox, version: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        ((merge.store.model(version) if version else merge.store.current) / MANIFEST).read_text()
    )
    return found


def front(text: str) -> dict[str, Any]:
    """Return the front matter, as the Hub's own client reads it."""
    found: dict[str, Any] = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    return found


def tokens(text: str) -> list[Token]:
    """Return the body as a reader of Markdown takes it."""
    return MarkdownIt("gfm-like", {"linkify": False}).enable("table").parse(ModelCard(text).text)


def words(token: Token) -> str:
    return "".join(child.content for child in token.children or [])


def table(text: str) -> list[list[str]]:
    """Return the cells of the rows of the table, as a reader sees them; there is but one."""
    found, rows = tokens(text), list[list[str]]()
    assert sum(token.type == "table_open" for token in found) <= 1
    for before, token in pairwise(found):
        if before.type == "tr_open":
            rows.append([])
        if before.type in ("td_open", "th_open"):
            rows[-1].append(words(token))
    return rows[1:]


def names_in(merge: Sandbox, version: int | None = None) -> list[str]:
    found = [row["name"] for row in manifest(merge, version)["checkpoints"]]
    assert [row[1] for row in table(card(merge, version))] == found
    return found


# ------------------------------------------------------------------------------------------------------ front matter


def test_the_hubs_own_client_reads_the_front_matter(tmp_path: Path) -> None:
    save_model(tmp_path / "base", tiny_base())
    (tmp_path / "base" / "README.md").write_text(
        "---\nlicense: mit\npipeline_tag: text-generation\nx: 1\n---\n# Base\n"
    )
    text = card(folded(tmp_path, "a"))
    assert front(text) == PLAIN | {"pipeline_tag": "text-generation"}
    assert "# Base" not in text
    assert "The base model's card says `mit`. Those of the checkpoints are not known here" in text


def test_a_base_without_a_config_is_said_to_be_for_no_library(tmp_path: Path) -> None:
    save_model(tmp_path / "base", tiny_base(), None)
    assert front(card(folded(tmp_path, "a"))) == {key: PLAIN[key] for key in ("base_model_relation", "tags")}


@pytest.mark.parametrize(
    "text",
    [
        b"no front matter", b"---\n- a\n- list\n---\n", b"---\n{ no yaml\n---\n", b"\xff\xfe", b"", b"---\nlicense: mit\n",
        b"---\nlicense: [mit]\npipeline_tag: {a: b}\n---\n", b'---\nlicense: "x\\n---\\nbase_model: evil"\n---\n',
        b"---\nlicense: !!python/object/apply:os.system [id]\n---\n", b"---\nlicense: mit\nx: " + b"[" * 20000 + b"\n---\n",
        b"---\nlicense: mit\nx: " + b"y" * 2**16 + b"\n---\n", b"x" * 2**21, b"---\npipeline_tag: '`a` <b>'\n---\n",
    ],
)  # fmt: skip
def test_a_card_of_the_base_that_says_nothing_of_use_says_nothing(text: bytes, tmp_path: Path) -> None:
    save_model(tmp_path / "base", tiny_base())
    (tmp_path / "base" / "README.md").write_bytes(text)
    found = card(folded(tmp_path, "a"))
    assert front(found) == PLAIN
    assert "The base model's is not known here." in found


def test_a_base_from_the_hub_is_named_by_its_repository_and_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "snapshot", tiny_base())
    for module in (opening, initialise):
        monkeypatch.setattr(module, "locate", lambda *_, **__: (tmp_path / "snapshot", COMMIT))
    (tmp_path / "base").mkdir()
    merge = Sandbox(tmp_path, tiny_base())
    merge.watch.mkdir()
    values = {"base_model": "org/base@main", "watch": merge.watch, "state": merge.state, "quiet": 0}
    initialise.initialise(validate(values, "a test"), merge.config, Progress())
    fold(merge, "a")
    assert front(card(merge)) == {"base_model": ["org/base"]} | PLAIN
    assert manifest(merge)["base"]["commit"] == COMMIT
    assert f"mergd init --base org/base@{COMMIT} " in card(merge)


def rows_of(*places: str) -> Line:
    """Return a line of folds of checkpoints at these places."""
    rows = {
        number: Checkpoint(
            number, "hub", place, place.removeprefix("hf://"), COMMIT, "folded", "", digest=f"{number:064x}"
        )
        for number, place in enumerate(places, start=1)
    }
    totals = Totals(1, 1.0, 1.0, 1.0)
    return Line([Version(n, None, "fold", n, "opcm", totals, 1.0, "", "") for n in rows], rows)


def facts_of(line: Line, merge: Sandbox) -> dict[str, Any]:
    """Return the facts of a merge's head as if it had been made of this line."""
    checkpoints, others = made_of(line)
    base = {"repository": "org/base", "commit": COMMIT, "digest": "0" * 64}
    return manifest(merge) | {"checkpoints": checkpoints, "others": others, "more": 0, "base": base}


def test_checkpoints_from_the_hub_are_named_after_the_base_and_no_path_is(tmp_path: Path) -> None:
    places = ("hf://org/one", "/secret/path/two", "hf://user/three", "hf://org/one", "hf://evil name/x", "hf://a/b/c")
    facts = facts_of(rows_of(*places), folded(tmp_path, "a"))
    text = card_of(facts, {}, transformers=True)
    assert front(text)["base_model"] == ["org/base", "org/one", "user/three"]
    assert [row[3] for row in table(text)] == [COMMIT, "", COMMIT, COMMIT, COMMIT, COMMIT]
    assert all("commit" not in row for row in facts["checkpoints"] if row["name"].startswith("/"))


def test_what_was_folded_from_the_hub_is_named_by_commands_too_and_after_a_rebuild(tmp_path: Path) -> None:
    merge = folded(tmp_path, "a", rule="average")
    with History(merge.store.database, write=True) as history:
        history._db.execute("update checkpoints set place = 'hf://org/one', fingerprint = ?", [COMMIT])
        before = history.checkpoints.get(1)
    assert merge.mergd("publish", "--scale", "0.5").code == 0
    assert front(card(merge)) == {"base_model": ["org/one"]} | PLAIN
    assert table(card(merge))[0][3] == COMMIT
    path = writable(merge.store.manifest_path(1))
    path.write_bytes(text_of(merge.store.manifest(1) | {"checkpoint": named(before)}))
    assert merge.mergd("rebuild", "--force").code == 0
    assert merge.mergd("publish", "--scale", "0.25").code == 0
    assert table(card(merge))[0][3] == COMMIT


# ---------------------------------------------------------------------------------------------------------- the table


def test_no_name_does_anything_but_stand_there(tmp_path: Path) -> None:
    names = [name for name in HOSTILE if "/" not in name]
    merge = folded(tmp_path, *names)
    text = card(merge)
    assert [row["name"] for row in manifest(merge)["checkpoints"]] == names
    assert front(text) == front(card(folded(tmp_path / "tame", *map(str, range(len(names))))))
    assert [row[1] for row in table(text)] == [shown(name).strip() for name in names]
    assert "www." not in text.lower()  # of which a reader of GitHub's Markdown makes a link
    assert all(len(row) == 8 for row in table(text))
    for token in tokens(text):
        assert token.type != "html_block"
        assert {child.type for child in token.children or []} <= {"text", "text_special", "code_inline", "softbreak"}
    assert [token.content for token in tokens(text) if token.type == "heading_open"] == [""] * 4
    assert all(c.isprintable() or c == "\n" for c in text)


def test_a_name_of_300_characters_is_cut_in_the_card_and_whole_in_the_manifest(tmp_path: Path) -> None:
    facts = facts_of(rows_of("hf://" + "é" * 300), folded(tmp_path, "a"))
    assert facts["checkpoints"][0]["name"] == "é" * 300
    assert table(card_of(facts, {}, transformers=True))[0][1] == "é" * 100 + "…"


def test_what_each_checkpoint_counted_and_did_is_in_its_row(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, rule="average", trust_sidecar=True)
    (save_model(tmp_path / "aside", merge.fine_tuned(1)) / "checkpoint.toml").write_text("share = 2.0")
    (tmp_path / "aside").rename(merge.watch / "a")
    merge.fold_all()
    merge.drop("b", 2)
    merge.fold_all()
    first, second = merge.versions()
    digests = [str(row.digest) for row in merge.checkpoints()]
    norms = [f"{version.totals.readout_norm:.6g}" for version in (first, second)]
    assert table(card(merge)) == [
        ["1", "a", digests[0][:12], "", "2", "v1", f"{first.scale:.6g}", norms[0]],
        ["2", "b", digests[1][:12], "", "1", "v2", f"{second.scale:.6g}", norms[1]],
    ]
    assert manifest(merge)["totals"]["shares"] == 3.0


def test_what_was_taken_out_is_not_among_them_and_is_told_of(tmp_path: Path) -> None:
    merge = folded(tmp_path, "a", "b", "c", rule="average")
    assert merge.mergd("remove", "b").code == 0
    assert names_in(merge) == ["a", "c"]
    (other,) = manifest(merge)["others"]
    assert (other["removed"]["name"], other["removed"]["version"], other["how"]) == ("b", 2, "subtraction")
    assert "was taken out, by subtraction; v2 had folded it" in card(merge)
    assert merge.mergd("remove", "a", "--exact").code == 0
    assert names_in(merge) == ["c"]
    assert merge.mergd("remove", "c").code == 0
    assert names_in(merge) == []
    assert manifest(merge)["more"] == 0
    assert "There is none in it" in card(merge)


def test_a_model_without_checkpoints_has_the_bases_licence(tmp_path: Path) -> None:
    save_model(tmp_path / "base", tiny_base())
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    merge = folded(tmp_path, "a", rule="average")
    assert "license" not in front(card(merge))
    assert merge.mergd("remove", "a").code == 0
    assert front(card(merge)) == PLAIN | {"license": "mit"}


def test_a_model_that_was_read_out_or_merged_anew_says_of_what_and_how(tmp_path: Path) -> None:
    merge = folded(tmp_path, "a", "b", "c", rule="average")
    assert merge.mergd("publish", "--scale", "0.5").code == 0
    assert names_in(merge) == ["a", "b", "c"]
    assert "v4: what is kept was read out anew, by average; the scale after it was 0.5." in card(merge).replace(
        "\\", ""
    )
    (merge.watch / "b").rename(tmp_path / "gone")
    assert merge.mergd("remerge", "--rule", "karcher").code == 0
    assert names_in(merge) == ["a", "c"]
    assert manifest(merge)["method"]["rule"] == "karcher"
    assert "all were merged anew from their sources, by karcher, without b, whose sources were gone" in card(merge)
    fold(merge, "d")
    assert names_in(merge) == ["a", "c", "d"]
    assert [other["cause"] for other in manifest(merge)["others"]] == ["re-merge"]


def test_the_line_of_ancestors_counts_and_not_what_was_rolled_away(tmp_path: Path) -> None:
    merge = folded(tmp_path, "a", "b")
    assert merge.mergd("rollback", "v1").code == 0
    fold(merge, "c")
    assert names_in(merge) == ["a", "c"]
    assert merge.mergd("fold", "--again", "b").code == 0
    assert names_in(merge) == ["a", "c", "b"]


def test_no_more_than_the_newest_are_looked_at_and_how_many_more_there_are_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ancestry, "MOST", 3)
    merge = folded(tmp_path, "a", "b", "c", "d", "e", rule="average")
    assert names_in(merge) == ["c", "d", "e"]
    assert manifest(merge)["more"] == 2
    assert [row[0] for row in table(card(merge))] == ["3", "4", "5"]
    assert "2 more were folded before these" in card(merge)
    with History(merge.store.database) as history:
        assert [version.number for version in line_of(5, history).versions] == [3, 4, 5]
        lines = Lines(history)
        for number in (1, 2, 3, 4, 5, 5, 2, 4, None, 3):  # on from the last one, or anew
            assert lines.to(number) == line_of(number, history)
        assert [version.number for version in history.lineage(4, 2)] == [4, 3]
        assert [version.number for version in history.lineage(2)] == [2, 1]


# ------------------------------------------------------------------------------------------------------- the same bytes


def files(merge: Sandbox, version: int) -> dict[str, bytes]:
    folder = merge.store.model(version)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_checkpoints_in_the_same_order_give_the_same_folder_anywhere(tmp_path: Path) -> None:
    one = folded(tmp_path / "one" / "deep" / "down", "a", "b")
    other = folded(tmp_path / "another-name", "a", "b")
    for version in (1, 2):
        assert files(one, version) == files(other, version)
    assert files(one, 1) != files(one, 2)


def test_nothing_in_the_folder_says_where_when_or_by_whom_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = folded(tmp_path, "a", "b", rule="average")
    with History(merge.store.database, write=True) as history:
        history._db.execute("update checkpoints set owner = 'somebody-here'")
    assert merge.mergd("remove", "a").code == 0
    assert merge.mergd("publish", "--scale", "0.5").code == 0
    for version in (1, 2, 3, 4):
        for name, data in files(merge, version).items():
            assert not re.search(rb"/tmp|/root|/home|/watch|/state|somebody-here|\b20\d\d-\d\d", data), name
            assert str(tmp_path).encode() not in data


def test_the_manifest_vouches_for_every_other_file(tmp_path: Path) -> None:
    merge = folded(tmp_path, "a", shard_size=300)
    said = manifest(merge)
    found = files(merge, 1)
    assert said["digests"] == "blake3"
    assert {file["name"]: (file["size"], file["blake3"]) for file in said["files"]} == {
        name: (len(data), blake3(data).hexdigest()) for name, data in found.items() if name != MANIFEST
    }
    assert found[MANIFEST].decode() == json.dumps(said, indent=1, sort_keys=True) + "\n"
    assert said["digest"] == merge.versions()[0].digest
    assert {"version": 1, "rule": "opcm", "scale": merge.versions()[0].scale}.items() <= said.items()
    assert said["parameters"]["alpha"] == 0.5
    assert not merge.mergd("verify").code
    path = writable(merge.store.model(1) / CARD)
    path.write_text(path.read_text().replace("merged", "MERGED"))
    assert merge.mergd("verify").code == 74


def test_the_cards_words_are_no_part_of_a_versions_digest(tmp_path: Path) -> None:
    one, other = folded(tmp_path / "one", "a"), folded(tmp_path / "two", "another name")
    assert one.versions()[0].digest == other.versions()[0].digest
    assert card(one) != card(other)


def test_the_commands_on_the_card_give_the_same_bytes(tmp_path: Path) -> None:
    merge = folded(tmp_path / "first", "a", "b", "it's c", rule="average", out_dtype="bfloat16", parameters={})
    assert merge.mergd("remove", "b").code == 0
    assert merge.mergd("publish", "--scale", "0.25", "--lines", "0.5", "1").code == 0
    there = {"BASE": merge.base, "DROP": tmp_path / "drop", "STATE": tmp_path / "state"}
    there |= {f"CHECKPOINT-{number}": merge.watch / name for number, name in enumerate(names_in(merge), start=1)}
    there["CHECKPOINT"] = merge.watch / "b"
    (tmp_path / "drop").mkdir()
    for line in commands(card(merge)):
        command, *arguments = (str(there.get(word, word)) for word in shlex.split(line, comments=True)[1:])
        ended = mergd(command, "-c", tmp_path / "mergd.toml", *arguments, at=tmp_path)
        assert ended.code == 0, (line, ended.err)
    again = Sandbox(tmp_path, merge.model)
    assert files(again, 5)["model.safetensors"] == files(merge, 5)["model.safetensors"]
    assert again.versions()[-1].digest == merge.versions()[-1].digest
    assert card(again) == card(merge)


def test_the_commands_on_the_card_have_each_checkpoint_count_what_it_did(tmp_path: Path) -> None:
    merge = make_merge(tmp_path / "first", rule="average", trust_sidecar=True)
    for name, share in (("a", "share = 2.5"), ("b", ""), ("c", "share = 0.5")):
        aside = save_model(tmp_path / f"aside-{name}", merge.fine_tuned(ord(name)))
        shutil.copytree(aside, tmp_path / f"copy-{name}")
        (aside / "checkpoint.toml").write_text(share)
        aside.rename(merge.watch / name)
        merge.fold_all()
    (tmp_path / "drop").mkdir()
    there = {"BASE": merge.base, "DROP": tmp_path / "drop", "STATE": tmp_path / "state"}
    there |= {f"CHECKPOINT-{number}": tmp_path / f"copy-{name}" for number, name in enumerate("abc", start=1)}
    said = re.sub(
        r"\b(BASE|DROP|STATE|CHECKPOINT-\d)\b", lambda word: str(there[word[0]]), "\n".join(commands(card(merge)))
    )
    for line in said.splitlines():
        if line.startswith("echo"):
            subprocess.run(line, shell=True, check=True)
            continue
        command, *arguments = shlex.split(line)[1:]
        assert mergd(command, "-c", tmp_path / "mergd.toml", *arguments, at=tmp_path).code == 0, line
    again = Sandbox(tmp_path, merge.model)
    assert again.versions()[-1].totals.shares == 4.0
    assert again.versions()[-1].digest == merge.versions()[-1].digest


# ------------------------------------------------------------------------------------------------------------- licences


def licensed(root: Path, base: str, *theirs: str) -> Sandbox:
    """Return a merge of a base model and checkpoints whose cards claim these licences; empty: no card."""
    save_model(root / "base", tiny_base())
    (root / "base" / "README.md").write_text(f"---\nlicense: {base}\n---\n")
    merge = make_merge(root, limits=NO_LIMITS)
    for seed, licence in enumerate(theirs, start=1):
        aside = save_model(root / f"aside-{seed}", merge.fine_tuned(seed))
        if licence:
            (aside / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        aside.rename(merge.watch / str(seed))
        merge.fold_all()
    return merge


def test_a_licence_that_all_claim_is_the_cards(tmp_path: Path) -> None:
    merge = licensed(tmp_path, "mit", "mit", "mit")
    assert front(card(merge))["license"] == "mit"
    assert all(len(row) == 8 for row in table(card(merge)))
    assert [row["licence"] for row in manifest(merge)["checkpoints"]] == ["mit", "mit"]


@pytest.mark.parametrize(
    ("base", "theirs", "shown"),
    [("mit", ["mit", ""], ["mit", "not known"]), ("mit", ["mit", "apache-2.0"], ["mit", "apache-2.0"]),
     ("mit", ["gpl", "gpl"], ["gpl", "gpl"])],
)  # fmt: skip
def test_licences_that_differ_are_told_one_by_one(
    tmp_path: Path, base: str, theirs: list[str], shown: list[str]
) -> None:
    text = card(licensed(tmp_path, base, *theirs))
    assert "license" not in front(text)
    assert [row[8] for row in table(text)] == shown


@pytest.mark.parametrize(("base", "theirs"), [("llama3.1", "mit"), ("mit", "llama3.1")])
def test_what_a_licence_asks_of_the_name_is_told(tmp_path: Path, base: str, theirs: str) -> None:
    text = card(licensed(tmp_path, base, theirs))
    assert 'name begin with "Llama"' in text
    assert 'show "Built with Llama"' in text


def test_what_a_licence_asks_is_told_of_no_other(tmp_path: Path) -> None:
    assert "begin with" not in card(licensed(tmp_path, "mit", "gpl"))


def test_a_licence_is_as_it_was_claimed_then_also_after_a_rebuild(tmp_path: Path) -> None:
    merge = licensed(tmp_path, "mit", "gpl")
    before = card(merge)
    (merge.watch / "1" / "README.md").unlink()
    replayed(merge, 1)
    assert card(merge) == before
    assert merge.mergd("rebuild", "--force").code == 0
    assert [row.licence for row in merge.checkpoints()][:1] == ["gpl"]


def test_a_card_that_leads_elsewhere_claims_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("---\nlicense: gpl\n---\n")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "README.md").symlink_to(tmp_path / "secret")
    assert licence_in(tmp_path / "checkpoint") is None
    (tmp_path / "checkpoint" / "README.md").unlink()
    (tmp_path / "secret").rename(tmp_path / "checkpoint" / "README.md")
    assert licence_in(tmp_path / "checkpoint") == "gpl"


def commands(text: str) -> Iterator[str]:
    (block,) = (token for token in tokens(text) if token.type == "fence")
    return iter(block.content.splitlines())


@pytest.mark.filterwarnings("ignore")  # peft and transformers warn of their own
def test_transformers_loads_a_folder_with_a_card(tmp_path: Path) -> None:
    model = llama()
    save_base(tmp_path / "base", model)
    merge = make_merge(tmp_path, weights_of(model), limits=NO_LIMITS)
    save_adapter(merge.watch / "a", model, LoraConfig(r=4, target_modules=["q_proj"]), 1)
    merge.fold_all()
    loaded, published = weights_of(LlamaForCausalLM.from_pretrained(merge.store.current)), merge.published()
    assert all(torch.equal(tensor, published[name]) for name, tensor in loaded.items())
    assert set(WORDS) <= {path.name for path in merge.store.current.iterdir()}


def test_a_merged_model_may_be_the_base_of_another_which_has_words_of_its_own(tmp_path: Path) -> None:
    first = folded(tmp_path / "first", "a")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "base").symlink_to(first.store.model(1))
    second = folded(tmp_path / "second", "b")
    assert names_in(second) == ["b"]
    assert manifest(second)["base"]["digest"] != manifest(first)["base"]["digest"]


# -------------------------------------------------------------------------------------------------------------- replays


def replayed(merge: Sandbox, version: int) -> None:
    for path in merge.store.model(version).iterdir():
        path.unlink()
    assert merge.mergd("verify").code == 74
    with merge.loop() as loop:
        loop.ask(Replay(version=str(version)))
    assert not merge.mergd("verify").code


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_a_replay_brings_the_same_words_back(tmp_path: Path, version: int) -> None:
    merge = folded(tmp_path, "a", "b", rule="average", keep_last=9)
    for command in (["remove", "a"], ["publish", "--scale", "0.5"], ["remerge", "--rule", "karcher"]):
        assert merge.mergd(*command).code == 0
    before = merge.weight_files(version)
    replayed(merge, version)
    assert merge.weight_files(version) == before


def test_a_version_from_before_there_were_cards_gets_one_by_a_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(drafting, "add_card", lambda draft, files, *_: files)
        merge = folded(tmp_path, "a")
    assert not (merge.store.model(1) / CARD).exists()
    ended = merge.mergd("card", "v1")
    assert ended.code == 2
    assert "wrote no cards" in ended.err
    replayed(merge, 1)
    assert names_in(merge, 1) == ["a"]


# ------------------------------------------------------------------------------------------------------- mergd card


def test_the_card_is_printed_as_it_stands_and_what_was_learned_since_after_it(merge: Sandbox) -> None:
    fold(merge, "a", "b")
    ended = merge.mergd("card", "head")
    assert ended.out.startswith(card(merge))
    assert ended.out.removeprefix(card(merge)).split("\n") == ["", "## Since then", "", "- It is the head.", ""]
    before = merge.weight_files(2)
    assert merge.mergd("tag", "good", "v2").code == 0
    assert merge.mergd("rollback", "v1").code == 0
    said = merge.mergd("card", "good", "--json").json
    assert (said["version"], said["card"]) == (2, card(merge, 2))
    assert said["since"][:2] == ["It is not in the line of the head, v1.", "Its tags: good."]
    assert re.fullmatch(r"The head moved from it to v1 at \S+, by uid \d+: rollback\.", said["since"][2])
    assert merge.weight_files(2) == before
    fold(merge, "c")
    assert merge.mergd("card", "v1", "--json").json["since"] == ["The head, v3, was made from it."]
    assert front(merge.mergd("card", "v1").out) == PLAIN


def test_a_damaged_card_is_not_printed_and_damage_elsewhere_is_told_of(merge: Sandbox) -> None:
    fold(merge, "a", "b")
    writable(merge.store.model(1) / "config.json").write_text("{}")
    assert merge.mergd("verify").code == 74
    assert "Damaged: models/000001/config.json." in merge.mergd("card", "v1").out
    writable(merge.store.model(2) / CARD).write_text("\x1b[31m")
    ended = merge.mergd("card", "v2")
    assert (ended.code, ended.out) == (74, "")
    (merge.store.model(2) / CARD).unlink()
    assert merge.mergd("card", "v2").code == 74


def test_a_card_that_retention_dropped_is_asked_for_in_vain(merge: Sandbox) -> None:
    set_in(merge.config, keep_last="1", keep_daily="0", keep_weekly="0", keep_within='"0s"')
    fold(merge, "a", "b", "c")
    ended = merge.mergd("card", "v1")
    assert ended.code == 2
    assert "mergd replay v1" in ended.err
    assert merge.mergd("card", "v9").code == 2
