"""Manifests against Kubernetes' own schemas, and what its API checks beyond them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gdist.cli import exits
from gdist.cli.commands.bootstrap import PERMANENT
from gdist.clusters import detect
from gdist.core.mesh import HostGroup
from gdist.errors import RequestError
from gdist.run.bootstrap.job import BootstrapJob
from gdist.run.bootstrap.kubernetes import Kubernetes, kubernetes_manifest

VERSIONS = ("1.29", "1.31", "1.33", "1.35", "1.37")
COUNT = 8

Document = dict[str, Any]  # Any: a manifest is what YAML gives


def job(source: str = "grok-1", dest: str = "/data/my models/grok-1", **changes: Any) -> BootstrapJob:
    return BootstrapJob(
        source, dest, ("--mesh", "8x8", "--select", "layer [0-3]$"), COUNT, PERMANENT, **changes
    )


VARIANTS: dict[str, tuple[BootstrapJob, Kubernetes]] = {
    "plain": (job(), Kubernetes("registry/gdist:1")),
    "everything": (
        job(then="python train.py", port=7700, name="brings-grok"),
        Kubernetes(
            "registry/gdist:1",
            namespace="ml",
            train_image="registry/train:2",
            volume="pvc:scratch",
            storage="400GiB",
            secret_name="ours",
            node_selector=("pool=gpu", "cloud.google.com/gke-accelerator=h100"),
            memory="8GiB",
        ),
    ),
    "prefetch": (job(), Kubernetes("registry/gdist:1", prefetch=True, volume="hostPath")),
    "bucket": (job(dest="s3://models/grok-1"), Kubernetes("registry/gdist:1")),
    "jobset": (job(), Kubernetes("registry/gdist:1", jobset=True)),
    "jobset prefetch": (
        job(port=7700),
        Kubernetes("registry/gdist:1", jobset=True, prefetch=True, volume="hostPath", storage="10GB"),
    ),
    "one host": (BootstrapJob("grok-1", "/grok-1", (), 1, PERMANENT), Kubernetes("registry/gdist:1")),
}
each_variant = pytest.mark.parametrize("name", VARIANTS)


def documents(made: BootstrapJob, kube: Kubernetes) -> dict[str, Document]:
    """The manifest's documents by kind; of a JobSet also the Job that its controller makes."""
    found = {document["kind"]: document for document in yaml.safe_load_all(kubernetes_manifest(made, kube))}
    if "JobSet" in found:
        (replicated,) = found["JobSet"]["spec"]["replicatedJobs"]
        assert replicated["replicas"] == 1
        name = f"{found['JobSet']['metadata']['name']}-{replicated['name']}-0"
        template = copy.deepcopy(replicated["template"])
        found["Job"] = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, **template}
        found["Job"]["spec"]["template"]["spec"]["subdomain"] = found["JobSet"]["metadata"]["name"]
    return found


def pod_of(found: dict[str, Document]) -> Document:
    spec: Document = found["Job"]["spec"]["template"]["spec"]
    return spec


def agent_of(found: dict[str, Document]) -> Document:
    pod = pod_of(found)
    return next(c for c in (*pod.get("initContainers", ()), *pod["containers"]) if c["name"] == "gdist")


@each_variant
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_schemas_take_it(name: str, version: str) -> None:
    for kind, document in documents(*VARIANTS[name]).items():
        if kind != "JobSet":  # a custom resource; its Job is checked
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "completionMod"), "Indexed"),
        (("spec", "completions"), "eight"),
        (("spec", "podFailurePolicy", "rules", 0, "onExitCodes", "values"), ["2"]),
        (("spec", "template", "spec", "initContainers", 0, "commands"), ["gdist"]),
        (("spec", "template", "spec", "volumes", 0, "emptyDir"), "here"),
    ],
)
def test_the_schemas_see_what_is_broken(path: tuple[str | int, ...], value: object) -> None:
    document: Any = documents(*VARIANTS["plain"])["Job"]
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


@each_variant
def test_what_the_api_server_checks_beyond_the_schemas(name: str) -> None:
    found = documents(*VARIANTS[name])
    spec, pod = found["Job"]["spec"], pod_of(found)
    assert pod["restartPolicy"] == "Never", "a podFailurePolicy needs it"
    for container in pod.get("initContainers", ()):
        hooks = {"readinessProbe", "livenessProbe", "startupProbe", "lifecycle"}
        assert not hooks & set(container), "init containers have none"
    containers = {c["name"] for c in (*pod.get("initContainers", ()), *pod["containers"])}
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes:
            assert codes["containerName"] in containers
            assert codes["values"] == sorted(set(codes["values"])) and 0 not in codes["values"]
        else:
            assert all(condition["status"] for condition in rule["onPodConditions"])
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        names = [port["name"] for port in container.get("ports", ())]
        assert all(re.fullmatch(r"[a-z0-9-]{1,15}", port) for port in names) and len(set(names)) == len(names)
    for document in found.values():
        assert len(document["metadata"]["name"]) <= 63
    assert len(f"{found['Job']['metadata']['name']}-{COUNT - 1}") <= 63, "the pods' host names"
    labels = spec["template"]["metadata"]["labels"]
    (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"].items() <= labels.items()


@each_variant
def test_pods_find_one_another(name: str) -> None:
    """Every pod's environment and host name, as the controllers set them, give its place among all."""
    made, kube = VARIANTS[name]
    found = documents(made, kube)
    pod, environ = pod_of(found), dict(variables(agent_of(found)))
    port = made.port or 7611
    for index in range(made.count):
        hostname = f"{found['Job']['metadata']['name']}-{index}"
        full = f"{hostname}.{pod['subdomain']}.ml.svc.cluster.local"
        there = {**environ, "JOB_COMPLETION_INDEX": str(index), "KUBERNETES_SERVICE_HOST": "10.96.0.1"}
        for called in (hostname, full):
            member = detect(there, hostname=called)
            assert member.host == HostGroup(index, made.count)
            assert member.hosts[index] == f"{hostname}.{pod['subdomain']}:{port}"
            assert member.coordinator == member.hosts[0]
    if "Service" in found:
        service = found["Service"]["spec"]
        assert found["Service"]["metadata"]["name"] == pod["subdomain"]
        assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"] is True
        assert service["selector"].items() <= found["Job"]["spec"]["template"]["metadata"]["labels"].items()
        assert service["ports"][0]["port"] == port
    else:
        network = found["JobSet"]["spec"]["network"]
        assert network == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}


def variables(container: Document) -> Iterator[tuple[str, str]]:
    """What a container's environment holds; secrets are not looked up."""
    for entry in container["env"]:
        yield entry["name"], expand(entry["value"]) if "value" in entry else "the secret"


def expand(text: str) -> str:
    """What Kubernetes makes of a value or an argument."""
    assert not re.search(r"(?<!\$)(\$\$)*\$\(", text), "a variable would be put in"
    return text.replace("$$", "$")


@pytest.mark.parametrize("name", ["plain", "prefetch", "jobset"])
def test_gdist_gets_the_line_as_it_was_given(name: str, nasty: str) -> None:
    _, kube = VARIANTS[name]
    made = job(nasty, program=("/opt/my venv/bin/gdist",))
    command = [expand(word) for word in agent_of(documents(made, kube))["command"]]
    assert command == [*made.command, "--http", "0.0.0.0:7612"]
    assert command[0] == "/opt/my venv/bin/gdist" and command[3] == nasty


def test_code_of_the_users_own_is_not_changed() -> None:
    then = "echo $HOME \"$(hostname)\" 'it''s' $$"
    pod = pod_of(documents(job(then=then), Kubernetes("x:1")))
    shell, option, code = pod["containers"][0]["command"]
    assert (shell, option, expand(code)) == ("/bin/sh", "-c", then)


def test_exit_codes_decide_as_they_are_documented() -> None:
    rules = documents(*VARIANTS["plain"])["Job"]["spec"]["podFailurePolicy"]["rules"]
    decided: dict[int, str] = {}
    for rule in rules:
        for code in rule.get("onExitCodes", {}).get("values", ()):
            decided.setdefault(code, rule["action"])
    for entry in exits.EXITS:
        expected = "Ignore" if entry.code == 20 else None if entry.retry else "FailJob"
        assert decided.get(entry.code) == expected, entry
    assert decided[exits.INTERNAL] == "FailJob"
    assert rules[0]["action"] == "FailJob", "the first rule that fits is taken"


def test_the_jobset_fails_where_its_job_says_that_trying_again_is_useless() -> None:
    policy = documents(*VARIANTS["jobset"])["JobSet"]["spec"]["failurePolicy"]
    (rule,) = policy["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    assert policy["maxRestarts"] > 0


def test_a_secret_is_made_once_and_not_shown_elsewhere() -> None:
    text = kubernetes_manifest(*VARIANTS["plain"])
    found = documents(*VARIANTS["plain"])
    secret = next(d for d in yaml.safe_load_all(text) if d["kind"] == "Secret")["stringData"]["secret"]
    assert re.fullmatch(r"[0-9a-f]{64}", secret) and text.count(secret) == 1
    assert secret != found["Secret"]["stringData"]["secret"], "another manifest has another one"
    reference = next(e for e in agent_of(found)["env"] if e["name"] == "GDIST_SECRET")
    assert reference["valueFrom"]["secretKeyRef"] == {
        "name": found["Secret"]["metadata"]["name"],
        "key": "secret",
    }
    named = documents(*VARIANTS["everything"])
    assert "Secret" not in named
    reference = next(e for e in agent_of(named)["env"] if e["name"] == "GDIST_SECRET")
    assert reference["valueFrom"]["secretKeyRef"]["name"] == "ours"


@each_variant
def test_the_volume_is_above_the_destination(name: str) -> None:
    made, kube = VARIANTS[name]
    agent = agent_of(documents(made, kube))
    (mount,) = agent["volumeMounts"]
    if "://" in made.dest:
        assert {"name": "XDG_CACHE_HOME", "value": mount["mountPath"]} in agent["env"]
    else:
        above = mount["mountPath"].rstrip("/") + "/"
        assert made.dest.startswith(above) or made.dest == mount["mountPath"] != "/"


def test_readiness_and_preStop_are_there_where_they_may_be() -> None:
    """In a prefetch the fetch is a container of its own; the hook leaves it the time that it needs."""
    found = documents(*VARIANTS["prefetch"])
    agent = agent_of(found)
    assert "initContainers" not in pod_of(found)
    assert agent["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert agent["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    ports = {port["name"]: port["containerPort"] for port in agent["ports"]}
    assert agent["command"][-1] == f"0.0.0.0:{ports['http']}"
    assert agent["lifecycle"]["preStop"]["exec"]["command"][-1] == "kill -TERM 1; sleep 15"
    assert pod_of(found)["terminationGracePeriodSeconds"] > 15 + 10


def test_memory_is_what_the_fetch_is_given_and_some() -> None:
    resources = agent_of(documents(*VARIANTS["everything"]))["resources"]
    assert resources["requests"]["memory"] == "9216Mi"
    assert resources["requests"]["ephemeral-storage"] == 400 * 2**30


@pytest.mark.parametrize(
    ("made", "kube", "says"),
    [
        (BootstrapJob("s", "/d", (), 2, (2,), hosts=("a", "b")), Kubernetes("i"), "takes a number"),
        (BootstrapJob("s", "d", (), 2, (2,)), Kubernetes("i"), "'d' is relative"),
        (BootstrapJob("s", "/d", (), 2, (2,), name="My_Job"), Kubernetes("i"), "'My_Job' cannot be"),
        (BootstrapJob("s", "/d", (), 2, (2,), name="a" * 49), Kubernetes("i"), "cannot be"),
        (BootstrapJob("s", "/d", (), 2, (2,), secret_file="f"), Kubernetes("i"), "not from a file"),
        (BootstrapJob("s", "/d", (), 2, (2,)), Kubernetes(""), "no image"),
        (BootstrapJob("s", "/d", (), 2, (2,)), Kubernetes("i", namespace="A"), "namespace 'A'"),
        (BootstrapJob("s", "/d", (), 2, (2,)), Kubernetes("i", volume="disk"), "volume 'disk' is none"),
        (BootstrapJob("s", "/d", (), 2, (2,)), Kubernetes("i", volume="pvc:"), "volume 'pvc' is none"),
        (BootstrapJob("s", "/d", (), 2, (2,)), Kubernetes("i", prefetch=True), "gone with the pod"),
        (
            BootstrapJob("s", "/d", (), 2, (2,), then="x"),
            Kubernetes("i", prefetch=True, volume="hostPath"),
            "runs nothing after",
        ),
        (BootstrapJob("s", "/d", (), 2, (2,)), Kubernetes("i", node_selector=("pool",)), "not KEY=VALUE"),
        (BootstrapJob("s", "/d", (), 2, (2,)), Kubernetes("i", storage="much"), "storage 'much'"),
        (BootstrapJob("s", "/d", (), 2, (2,)), Kubernetes("i\n- x"), "do not print"),
    ],
)
def test_what_cannot_be_a_manifest(made: BootstrapJob, kube: Kubernetes, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        kubernetes_manifest(made, kube)
    assert caught.value.hint


def test_a_manifest_is_json_too() -> None:
    """No tags, anchors or dates: whatever reads YAML reads it alike."""
    for document in yaml.safe_load_all(kubernetes_manifest(*VARIANTS["everything"])):
        assert json.loads(json.dumps(document)) == document
