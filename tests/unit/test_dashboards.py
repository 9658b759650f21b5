"""The alerts and the dashboard of the example project use metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from domain_event_broker.monitoring.metrics import (
    COMMON,
    HELD_STATES,
    PREFIX,
    QUEUE_KINDS,
    RELAY,
    SUBSCRIBER,
    Metric,
)
from domain_event_broker.monitoring.recorder import OUTCOMES, SENT_OUTCOMES
from tests.runner import ROOT

FOLDER = ROOT / "example_project/monitoring"
#: What Prometheus makes of a histogram.
SERIES = ("_bucket", "_sum", "_count")
#: Labels that Prometheus itself gives.
ALWAYS = {"job", "instance"}
VALUES = {
    "outcome": {*OUTCOMES, *SENT_OUTCOMES},
    "kind": set(QUEUE_KINDS),
    "state": set(HELD_STATES),
    "severity": {"critical", "warning"},
}


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return panels


def _expressions() -> Iterator[tuple[str, str]]:
    for rule in _rules():
        yield rule["alert"], rule["expr"]
    for panel in _panels():
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


def _known() -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for metric in (*COMMON, *RELAY, *SUBSCRIBER):
        endings = SERIES if metric.kind == "histogram" else ("",)
        found.update({f"{PREFIX}{metric.name}{ending}": metric for ending in endings})
    return found


EXPRESSIONS = list(_expressions())


@pytest.mark.parametrize(
    "expression", [each for _, each in EXPRESSIONS], ids=[name for name, _ in EXPRESSIONS]
)
def test_an_expression_uses_metrics_and_labels_that_exist(expression: str) -> None:
    known = _known()
    used = re.findall(rf"({PREFIX}\w+)(?:\{{([^}}]*)\}})?", expression)
    assert used
    assert {name for name, _ in used} <= set(known)
    labels = {label for name, _ in used for label in known[name].labels} | ALWAYS | {"le"}
    for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        assert set(re.split(r",\s*", group)) <= labels
    for name, selectors in used:
        for label, _, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', selectors):
            assert label in known[name].labels
            assert value == "$handler" or set(value.split("|")) <= VALUES[label]


def test_each_metric_is_shown_or_watched() -> None:
    used = {name for _, each in EXPRESSIONS for name in re.findall(rf"{PREFIX}\w+", each)}
    shown = {_known()[name].name for name in used}
    assert shown == {metric.name for metric in (*COMMON, *RELAY, *SUBSCRIBER)}


def test_alerts_say_what_is_wrong_with_labels_that_they_have() -> None:
    for rule in _rules():
        texts = " ".join(rule["annotations"].values())
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["labels"]["severity"] in VALUES["severity"]
        for label in re.findall(r"\$labels\.(\w+)", texts):
            kept = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
            assert not kept or label in kept[0], rule["alert"]


def test_no_two_panels_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in _panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is missing"
)
@pytest.mark.parametrize("command", [["rules", "alerts.yml"], ["config", "prometheus.yml"]], ids=" ".join)
def test_prometheus_itself_accepts_the_files(command: list[str]) -> None:
    done = subprocess.run(
        ["promtool", "check", *command], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_reads_the_alerts() -> None:
    configuration = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert configuration["rule_files"] == ["alerts.yml"]
