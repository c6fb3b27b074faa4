"""The alerts and the dashboard: each query is PromQL, and each figure and label in it is one that a daemon has."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import repository
import yaml
from support.command_line import check_command
from support.scraping import Scrape, scrape

from mergd import __version__
from mergd.daemon.figures import Facts, Figures
from mergd.daemon.judging import Given
from mergd.state.tallies import Tally

FOLDER = repository.ROOT / "systemd" / "observing"
ALERTS: dict[str, Any] = yaml.safe_load((FOLDER / "alerts.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
EXTERNAL = {"instance", "job"}  # labels that Prometheus adds


def of_a_busy_merge() -> Facts:
    """Return facts in which every figure has a sample."""
    found = {
        "head": 2, "trouble": "", "paused": None, "totals": {"folded": 2}, "versions": {"kept": 2}, "pushed": None,
        "disk": {"used": 1, "free": 1}, "settling": 0, "waiting": 0, "blocked": 0, "held": 1, "refused": 1, "folded": 2,
        "hooks": {"serving": {"undelivered": 1}},
    }  # fmt: skip
    return Facts(found, Tally(steps={"fold": (1, 1.0)}), {}, Given({("refused", "shape"): 1, ("held", "norm"): 1}))


@pytest.fixture(scope="module")
def scraped() -> Scrape:
    return scrape(Figures("llama", of_a_busy_merge).text().decode())


def queries() -> dict[str, str]:
    """Return every query by what it is of; Grafana's variables stand for something that a query may have there."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in RULES}
    for panel in PANELS:
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = filled(target["expr"])
    return found


def filled(query: str) -> str:
    return query.replace("$__rate_interval", "5m").replace("$__range", "7d").replace("$merge", "llama")


def selectors(query: str) -> Iterator[promql_parser.VectorSelector]:
    """Yield what a query selects, wherever it stands in it."""
    found: list[promql_parser.VectorSelector] = []
    promql_parser.walk(promql_parser.parse(query), lambda node: keep(node, found))
    yield from found


def keep(node: Any, found: list[promql_parser.VectorSelector]) -> bool:
    if isinstance(node, promql_parser.VectorSelector):
        found.append(node)
    return True


@pytest.mark.parametrize("name", queries())
def test_each_query_selects_what_a_scrape_has(scraped: Scrape, name: str) -> None:
    chosen = list(selectors(queries()[name]))
    assert chosen
    for selector in chosen:
        labels = {label.name: label for label in selector.matchers.matchers}
        series = [dict(has) for found, has in scraped.samples if found == selector.name]
        assert series, f"there is no {selector.name}"
        for label in labels.values():
            assert any(re.fullmatch(label.value, one.get(label.name, "")) for one in series), label


@pytest.mark.parametrize("name", queries())
def test_each_query_groups_by_labels_that_there_are(scraped: Scrape, name: str) -> None:
    text = queries()[name]
    grouped = re.findall(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)", text)
    labels = {label.strip() for group in grouped for label in group.split(",")}
    has = [set(dict(labels)) for found, labels in scraped.samples if found in {s.name for s in selectors(text)}]
    assert labels - EXTERNAL <= set.union(*has)


@pytest.mark.parametrize(
    "query", ["rat(mergd_folds_total[5m])", "rate(mergd_folds_total)", "sum(mergd_paused", "mergd_paused >"]
)
def test_what_is_no_query_is_seen(query: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        list(selectors(query))


def test_queries_are_looked_through() -> None:
    query = 'sum(rate(mergd_a{x="1"}[5m])) / on (merge) group_left time() - (mergd_b offset 1d) unless mergd_c'
    assert [selector.name for selector in selectors(query.replace("time()", "mergd_d"))] == [
        "mergd_a",
        "mergd_d",
        "mergd_b",
        "mergd_c",
    ]


def test_counters_are_read_as_counters_and_gauges_as_gauges(scraped: Scrape) -> None:
    for text in queries().values():
        for function, name in re.findall(r"\b(rate|increase|delta|changes|predict_linear)\((mergd_\w+)", text):
            counted = name.endswith(("_total", "_sum", "_count"))
            assert counted == (function in ("rate", "increase")), text


# ---------------------------------------------------------------------------------------------------------- the alerts


def test_the_alerts_are_what_prometheus_reads() -> None:
    assert ALERTS.keys() == {"groups"}
    assert all(group.keys() == {"name", "rules"} for group in ALERTS["groups"])
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names)) > 5
    for rule in RULES:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert re.fullmatch(r"\d+[smhdw]", rule.get("for", "1m"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_commands_that_there_are(rule: dict[str, Any]) -> None:
    for command in re.findall(
        r"\bmergd (-n \{\{ \$labels\.merge \}\} [a-z][\w-]*)", rule["annotations"]["description"]
    ):
        check_command(command.replace("{{ $labels.merge }}", "llama"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_shows_only_what_its_query_gives(rule: dict[str, Any]) -> None:
    shown = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    assert shown <= (set() if "absent(" in rule["expr"] else {"merge"})
    assert not re.findall(r"\{\{(?! \$labels\.merge \}\}| \$value \}\}| \$value \| humanizeDuration \}\})", str(rule))


def test_there_is_an_alert_for_whatever_needs_a_person(scraped: Scrape) -> None:
    named = {selector.name for rule in RULES for selector in selectors(rule["expr"])}
    assert {"mergd_trouble", "mergd_paused", "mergd_push_trouble", "mergd_hook_undelivered"} <= named


# ------------------------------------------------------------------------------------------------------- the dashboard


def test_the_dashboard_has_what_grafana_needs() -> None:
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    assert DASHBOARD["title"]
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD.keys() >= {"time", "refresh", "templating", "panels", "tags", "annotations"}
    assert "id" not in DASHBOARD  # it is the database's, and an imported one has none
    assert "__inputs" not in DASHBOARD
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_a_panel_has_what_grafana_needs(panel: dict[str, Any]) -> None:
    assert panel["type"] in ("stat", "timeseries")
    place = panel["gridPos"]
    assert place["x"] >= 0
    assert place["x"] + place["w"] <= 24
    assert min(place["w"], place["h"]) > 0
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references)) > 0
    for part in (panel, *panel["targets"]):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["fieldConfig"].keys() == {"defaults", "overrides"}


def test_no_panel_lies_on_another() -> None:
    for one, other in itertools.combinations([panel["gridPos"] for panel in PANELS], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_every_variable_that_is_used_is_there(scraped: Scrape) -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS)))
    assert used - {"__rate_interval", "__range"} == variables.keys() == {"datasource", "merge"}
    assert variables["datasource"]["query"] == "prometheus"
    match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables["merge"]["query"]["query"])
    assert match
    assert match[1] in scraped.names
    assert match[2] in scraped.labels()


def test_a_legend_shows_only_labels_that_there_are(scraped: Scrape) -> None:
    shown = set(re.findall(r"\{\{(\w+)\}\}", json.dumps(PANELS)))
    assert shown <= scraped.labels().keys()
    assert scraped.value("mergd_build_info", version=__version__) == 1


def test_no_other_file_lies_there() -> None:
    assert {path.name for path in Path(FOLDER).iterdir()} == {"alerts.yml", "dashboard.json"}
