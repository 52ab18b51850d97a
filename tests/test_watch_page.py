"""The page on watching a fetch: its metrics are ours, its manifests Kubernetes takes, its rules parse."""

from __future__ import annotations

import re
from pathlib import Path

import kubernetes_validate
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gdist.core.status import AgentStatus, Binds, ClusterStatus, MemberState, Stage
from gdist.run.metrics import Exposition

PAGE = (Path(__file__).parents[1] / "docs/how-to/watch-a-fetch.md").read_text()


def test_the_page_lists_every_metric_with_its_type() -> None:
    agent = AgentStatus(0, 1, "node0", "/data", Stage.FETCH, 1.0, True)
    cluster = ClusterStatus(0, 1, 1.0, (), bound_seconds=1.0, share_of_bound=1.0)
    text, _ = Exposition(lambda: agent, lambda: cluster).text()
    made = {
        (family.name + "_total" * (family.type == "counter"), family.type)
        for family in text_string_to_metric_families(text.decode())
        if not family.name.startswith("process_")
    }
    rows = re.findall(r"^\| (`gdist_.*?) \| (gauge|counter) \|", PAGE, re.MULTILINE)
    listed = {(name, kind) for names, kind in rows for name in re.findall(r"`(\w+)`", names)}
    assert listed == made


def test_the_page_lists_every_value_of_a_label() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| `gdist_stage`"))
    assert row.endswith(f"{', '.join(stage.value for stage in Stage)} |")
    row = next(line for line in PAGE.splitlines() if line.startswith("| `gdist_binds`"))
    assert row.endswith(f"{', '.join(binds.value for binds in Binds)} |")
    row = next(line for line in PAGE.splitlines() if line.startswith("| `gdist_cluster_hosts`"))
    assert row.endswith(f"{', '.join(state.value for state in MemberState)}, missing |")


def test_its_manifests_are_those_of_kubernetes_and_its_alerts_know_the_metrics() -> None:
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    pods = [block for block in blocks if "apiVersion" in block]
    assert len(blocks) == 2 and len(pods) == 1
    for pod in pods:
        kubernetes_validate.validate(pod, "1.29", strict=True)
    rules = next(block for block in blocks if "groups" in block)["groups"][0]["rules"]
    for rule in rules:
        assert all(f"`{name}`" in PAGE for name in re.findall(r"gdist_\w+", rule["expr"])), rule
