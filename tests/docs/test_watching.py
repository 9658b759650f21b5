"""The page on watching lists the metrics that there are; probes of Kubernetes ask what is served."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from django.core.management import load_command_class

from domain_event_broker.monitoring.metrics import COMMON, PREFIX, RELAY, SUBSCRIBER
from tests.docs.pages import DOCS, Page

PAGE = Page(DOCS / "how-to/watch.rst")


def test_each_metric_is_listed_with_kind_labels_and_meaning() -> None:
    expected = [
        [each.name, each.kind, ", ".join(each.labels), each.help] for each in (*RELAY, *SUBSCRIBER, *COMMON)
    ]
    assert PAGE.tables()[0] == expected
    assert PREFIX in PAGE.text


def test_the_values_of_labels_are_told() -> None:
    from domain_event_broker.monitoring import metrics, recorder

    known = {*recorder.OUTCOMES, *recorder.SENT_OUTCOMES, *metrics.QUEUE_KINDS, *metrics.HELD_STATES}
    assert known - set(PAGE.literals()) == set()


def _containers() -> list[dict[str, Any]]:
    blocks = Page(DOCS / "how-to/deploy.rst").blocks("yaml")
    documents = [each for block in blocks for each in yaml.safe_load_all(block.text)]
    deployments = [each for each in documents if each.get("kind") == "Deployment"]
    return [one for each in deployments for one in each["spec"]["template"]["spec"]["containers"]]


@pytest.mark.parametrize("container", _containers(), ids=lambda container: container["name"])
def test_probes_ask_the_port_that_the_command_serves(container: dict[str, Any]) -> None:
    name, *arguments = container["command"][2:]
    parser = load_command_class("domain_event_broker.django", name).create_parser("manage.py", name)
    served = parser.parse_args(arguments).metrics_port
    (port,) = container["ports"]
    assert port["containerPort"] == served
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
