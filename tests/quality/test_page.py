"""The page of quality: it is what its samples say, and what it says of results can be told by hand."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import repository
from quality import charts, records, tables
from quality.page import BLOCKS, DOCS, END, START, Page, write
from quality.samples import Quality, Sample
from support.quality_results import ONE, reference, result, some

LARGEST = 300_000  # bytes of docs/quality.json


@pytest.fixture(scope="session", autouse=True)
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Draw once before: matplotlib keeps the files of its fonts open."""
    charts.draw(Quality.of(some()).sets, tmp_path_factory.mktemp("charts"))


@pytest.fixture
def quality() -> Quality:
    return Quality.of(some())


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """The page of some results, in a folder of its own."""
    for one in some():
        records.write(tmp_path / "results", one)
    (tmp_path / "docs").mkdir()
    write(tmp_path / "results", tmp_path / "docs")
    return Page(tmp_path / "docs")


def rows(table: str) -> dict[str, dict[str, str]]:
    """Return a table's cells by the first column and the column's head."""
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {line[0].strip("`"): dict(zip(head[1:], line[1:], strict=True)) for line in lines}


# ----------------------------------------------------------------------------------------------- the project's own page


def test_the_page_is_what_the_samples_say() -> None:
    assert Page().page.read_text() == Page().text(), "run: make quality"


def test_the_samples_are_small_and_none_is_of_a_seed_that_tuned() -> None:
    assert Page().samples.stat().st_size < LARGEST
    draws = {draw for one in Quality.read(Page().samples).sets.values() for draw in one.draws}
    assert not {seed for draw in draws for seed in draw.split("-")} & {"1", "2"}


def test_the_charts_that_are_there_are_those_of_the_samples() -> None:
    drawn = charts.drawn(Quality.read(Page().samples).sets)
    assert {path.name for path in DOCS.glob("quality*.svg")} == set(drawn)


def test_every_block_of_the_page_is_made() -> None:
    text = Page().page.read_text()
    assert re.findall(re.escape(START.strip()).replace(r"\{\}", "(.*)"), text) == list(BLOCKS)
    assert text.count(END) == len(BLOCKS)


def test_each_target_that_the_page_names_is_one_of_the_makefiles() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (repository.ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", Page().page.read_text()))
    assert {"quality", "quality-quick"} <= named <= targets


# ---------------------------------------------------------------------------------------------------- what samples keep


def test_a_sample_is_what_its_result_says() -> None:
    sample = Sample.of(ONE)
    assert (sample.final, sample.worst, sample.unseen) == (80.0, 70.0, 45.0)
    assert sample.backward == ((81 - 95) + (90 - 91)) / 2
    assert (sample.distance, sample.seconds, sample.state) == (0.5123, 2.0, 1.5)
    assert sample.curve == (95.0, 88.0, 80.33)


def test_what_was_not_measured_is_not_a_number() -> None:
    assert Sample.of(reference("individual", 95.0)).backward is None  # nothing was folded
    sample = Sample.of(reference("plain-sum-1", 60.0, unseen={}, curve=()))
    assert (sample.backward, sample.unseen, sample.seconds, sample.state) == (None,) * 4
    assert sample.curve == ()


def test_a_re_merge_has_no_cost_of_its_folds() -> None:
    """Its checkpoints were folded by another rule, and were merged once, in the end."""
    sample = Sample.of(result(60.0, method="consensus_ta", rule="average", curve=()))
    assert (sample.backward, sample.seconds, sample.state) == (None, None, None)


def test_tuning_seeds_are_not_reported() -> None:
    made = Quality.of([*some(), result(99.0, 1), replace(result(99.0, 101), order=2)])
    assert made == Quality.of(some())


def test_of_one_constants_grid_the_best_of_each_set_is_kept(quality: Quality) -> None:
    one = quality.sets["vision-20"]
    assert one.constant == "0.3"
    assert list(one.values("plain-sum-best").values()) == [66.0, 67.0, 68.0]
    assert not [method for method in one.samples if method.startswith("plain-sum") and method != "plain-sum-best"]


def test_samples_are_read_as_they_were_written(quality: Quality, tmp_path: Path) -> None:
    quality.write(tmp_path / "quality.json")
    assert Quality.read(tmp_path / "quality.json") == quality
    told = json.loads((tmp_path / "quality.json").read_text())
    assert told["figures"] == [field.name for field in fields(Sample)]
    assert list(told["sets"]) == ["text-8", "vision-20", "vision-20+noise", "vision-20+noise-gate"]


def test_sets_are_sorted_by_their_numbers() -> None:
    names = ["vision-50", "vision-8-lora", "vision-8", "vision-20", "text-8"]
    assert [*Quality.of([result(set=name) for name in names]).sets] == [
        names[4],
        names[2],
        names[1],
        names[3],
        names[0],
    ]


# ----------------------------------------------------------------------------------------------------------- the tables


def test_a_sets_table_runs_from_the_individual_models_down_to_the_base(quality: Quality) -> None:
    made = rows(tables.one_set(quality.sets["vision-20"]))
    merged = ["gram", "tsvm", "fusion-bench-opcm", "opcm-block_diagonal", "opcm-block", "plain-sum-best"]
    assert list(made) == ["individual", *merged, "zero-shot"]
    assert made["gram"] == {
        "final average": "87.0 ± 5.0",
        "worst task": "87.0",
        "backward transfer": "+0.0",
        "unseen tasks": "45.0",
        "distance": "0.51",
        "seconds a fold": "2.00",
        "state, in models": "1.50",
        "over `opcm-block`": "+16.0 (at least +13.5)",
    }
    assert (
        made["individual"]["backward transfer"]
        == made["individual"]["seconds a fold"]
        == made["individual"]["state, in models"]
        == ""
    )
    assert made["opcm-block"]["over `opcm-block`"] == ""
    assert made["zero-shot"]["final average"] == "50.0 (n = 3)"


def test_the_summary_has_a_column_of_each_set_and_the_best_method_first(quality: Quality) -> None:
    made = rows(tables.summary(quality))
    assert list(made)[:3] == ["individual", "gram", "tsvm"]
    assert made["opcm-block"] == {"text-8": "66.0 (n = 3)", "vision-20": "71.0 ± 2.5"}
    assert made["gram"]["text-8"] == ""


def test_the_margins_are_paired_and_of_the_sets_that_have_both(quality: Quality) -> None:
    (made,) = rows(tables.margins(quality)).values()
    margins = ["+16.0 (at least +13.5)", "", "+12.0 (at least +9.5)", "-12.0 (at least -14.5)"]
    assert list(made.values()) == ["`gram`", *margins]


def test_fusion_benchs_opcm_stands_beside_ours_with_the_largest_difference(quality: Quality) -> None:
    (made,) = rows(tables.fusion_bench(quality)).values()
    assert list(made.values()) == ["71.1 ± 2.5", "71.0 ± 2.6", "-0.07", "-0.10"]


def test_a_bad_checkpoint_is_held_against_the_same_draws_without_it(quality: Quality) -> None:
    made = tables.robustness(quality)
    held = "bad held: norm-share (2 of 3)"
    assert f"| vision-20 | noise | `gram` | 87.0 ± 5.0 | 61.0 ± 2.5 |  | 85.0 ± 2.5 |  | {held} |" in made
    assert "+noise" not in tables.summary(quality) + tables.every_set(quality)
    two = Quality.of([one for one in some() if one.order < 103 or "+" not in one.set])
    assert "| vision-20 | noise | `gram` | 86.0 ± 12.7 | 60.5 ± 6.4 |" in tables.robustness(two)


def test_the_tasks_alone_have_the_least_of_their_draws(quality: Quality) -> None:
    assert "| a | 50.0 | 99.0 | 98.0 |" in tables.alone(quality)
    assert "| d | 60.0 |  |  |" in tables.alone(quality)  # never folded: nobody trained it


def test_the_methods_name_their_rules_and_parameters() -> None:
    made = Quality.of([*some(), result(method="doge", rule="average", curve=())])
    told = {method: row.popitem()[1] for method, row in rows(tables.methods(made)).items()}
    assert told["gram"] == "`gram`: epsilon = 0.1"
    assert told["individual"] == "a reference"
    assert told["doge"] == "a re-merge, at its defaults"


@pytest.mark.parametrize("block", BLOCKS)
def test_of_nothing_a_block_says_so(block: str) -> None:
    assert BLOCKS[block](Quality({}, {})) == tables.NOT_YET


# ------------------------------------------------------------------------------------------------- the page and charts


def test_the_page_has_each_table_in_its_place(page: Page) -> None:
    text = page.page.read_text()
    quality = Quality.of(some())
    for name, made in BLOCKS.items():
        assert f"{START.format(name)}\n{made(quality)}\n{END}" in text
    assert tables.NOT_YET not in text
    assert text == page.text()


def test_a_changed_sample_is_seen(page: Page) -> None:
    page.samples.write_text(page.samples.read_text().replace("[87.0,", "[97.0,"))
    assert page.page.read_text() != page.text()


def test_what_is_written_by_hand_stays(page: Page) -> None:
    hand = re.sub(r"<!-- made by.*?<!-- end -->", "", page.page.read_text(), flags=re.DOTALL)
    assert hand == re.sub(r"<!-- made by.*?<!-- end -->", "", Page().page.read_text(), flags=re.DOTALL)


def test_a_chart_has_the_same_bytes_for_the_same_figures_and_goes_with_them(page: Page, quality: Quality) -> None:
    (chart,) = page.folder.glob("*.svg")
    assert chart.name == "quality.svg"
    before = chart.read_bytes()
    charts.draw(quality.sets, page.folder)
    assert chart.read_bytes() == before
    charts.draw({"text-8": quality.sets["text-8"]}, page.folder)
    assert chart.read_bytes() != before
    charts.draw({}, page.folder)
    assert not chart.exists()


def test_a_chart_draws_the_mean_of_each_fold(quality: Quality) -> None:
    points = charts.curve(quality.sets["vision-20"], "gram")
    assert [(point.mean, point.n) for point in points] == [(87.0, 3)] * 3
    assert charts.curve(quality.sets["vision-20"], "no-such") == []
