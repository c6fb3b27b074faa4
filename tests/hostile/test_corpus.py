"""The corpus through the real admission, and a sample of it through the real command line: the verdict, and what it cost."""

import json
from pathlib import Path
from typing import Any

import pytest
from hostile.corpus import CORPUS, Recipe
from hostile.judging import LIMIT, judge_all, make_all
from support.commands import FORKING, start_forking
from support.merges import NO_LIMITS, Sandbox, make_merge

pytestmark = pytest.mark.long

Judged = dict[str, dict[str, Any]]
SLOW = 5.0  # seconds of processor time: ten times the promise, so that a noisy machine fails no test
SAMPLE = ("a fine-tune", "a tensor twice", "half the data", "a pipe", "index: NUL in a name", "index: whole",
          "a weight with escapes for its name", "a pickle", "as many tensors as a header holds")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _forking() -> None:
    start_forking()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose `watch` holds every place of the corpus, by its number."""
    root = tmp_path_factory.mktemp("corpus")
    make_all(root)
    return root


@pytest.fixture(scope="module")
def judged(made: Path) -> Judged:
    """Return what became of each place, by the recipe's name."""
    process = FORKING.Process(target=judge_all, args=(made, made / "judged.json"))
    process.start()
    process.join()
    process.close()
    found = json.loads((made / "judged.json").read_text())
    return {recipe.name: found[f"{k:03d}"] for k, recipe in enumerate(CORPUS)}


def test_the_corpus_is_large_and_not_all_bad() -> None:
    assert len({recipe.name for recipe in CORPUS}) == len(CORPUS) >= 80
    assert len(CORPUS) / 15 < sum(recipe.expected == "admitted" for recipe in CORPUS) < len(CORPUS) / 5


@pytest.mark.parametrize("recipe", CORPUS, ids=lambda recipe: recipe.name)
def test_each_gets_its_verdict_within_its_bounds(judged: Judged, recipe: Recipe) -> None:
    found = judged[recipe.name]
    assert found["decision"] == recipe.expected, found
    assert found["bytes"] < LIMIT
    assert found["seconds"] < SLOW


@pytest.mark.parametrize("recipe", CORPUS, ids=lambda recipe: recipe.name)
def test_what_is_said_of_it_is_short_and_can_do_nothing_to_a_log(judged: Judged, recipe: Recipe) -> None:
    for text in judged[recipe.name]["reasons"]:
        assert text.isprintable()
        assert len(text) < 1000


@pytest.fixture(scope="module")
def merge(made: Path, judged: Judged) -> Sandbox:
    """A merge whose watched folder is the corpus, and holds a link that leads round in a circle."""
    (made / "watch" / "round.safetensors").symlink_to("round.safetensors")
    return make_merge(made, existing="fold", limits=NO_LIMITS)


def test_a_daemon_that_finds_it_all_folds_what_is_good_and_goes_on(merge: Sandbox) -> None:
    ended = merge.mergd("run", "--once")
    assert ended.code == 0, ended.err
    state = {"admitted": "folded", "refused": "refused", "incomplete": "settling"}
    assert merge.states() == {f"{k:03d}": state[recipe.expected] for k, recipe in enumerate(CORPUS)}


@pytest.mark.parametrize("name", SAMPLE)
def test_the_command_line_says_the_same(merge: Sandbox, made: Path, name: str) -> None:
    (number, recipe), = [(k, recipe) for k, recipe in enumerate(CORPUS) if recipe.name == name]  # fmt: skip
    ended = merge.mergd("check", made / "watch" / f"{number:03d}")
    assert ended.code == {"admitted": 0, "refused": 65, "incomplete": 75}[recipe.expected], ended.err
    assert all(line.isprintable() for line in (ended.out + ended.err).splitlines())
