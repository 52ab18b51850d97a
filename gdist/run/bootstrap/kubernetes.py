"""Manifests for Kubernetes: an Indexed Job with a headless Service, or a JobSet."""

from __future__ import annotations

import posixpath
import re
import secrets
from dataclasses import dataclass

from gdist.core.units import parse_bytes, parse_memory
from gdist.errors import RequestError
from gdist.run.bootstrap.job import RESTARTS, BootstrapJob, check_absolute, check_counted, pairs
from gdist.run.bootstrap.rendering import render

PORT, HTTP_PORT = 7611, 7612
MOST_NAME = 48  # with -hosts-0-INDEX behind it a pod's name has 63 characters at most
SECRET_BYTES = 32
BESIDE_BYTES = 1 << 30  # what a fetch takes beside --memory: the interpreter, buffers of the wire, page cache
DEFAULT_MEMORY = 1 << 30
VOLUMES = ("emptyDir", "hostPath", "pvc:NAME")
_LABEL = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """What the manifest asks of the cluster.

    `image` has gdist in it, `train_image` what runs afterwards (default: the same). `volume` is where DEST
    lies: `emptyDir`, `hostPath` or `pvc:NAME`. `secret_name` is a Secret that is there already, with the key
    `secret`. `prefetch`: nothing runs after the fetch, which fills a volume that stays.
    """

    image: str
    namespace: str = ""
    train_image: str = ""
    jobset: bool = False
    prefetch: bool = False
    volume: str = "emptyDir"
    storage: str = ""
    secret_name: str = ""
    node_selector: tuple[str, ...] = ()
    memory: str = ""


def kubernetes_manifest(job: BootstrapJob, kube: Kubernetes) -> str:
    """The manifest, to be handed to `kubectl apply`.

    Raises:
        RequestError: when the job cannot be one of Kubernetes'.
    """
    check_counted(job, "Kubernetes")
    check_absolute(job, "a container starts in its image's directory")
    name = job.label
    for what, text in (("name", name), ("namespace", kube.namespace), ("secret's name", kube.secret_name)):
        if text and (not _LABEL.fullmatch(text) or len(text) > MOST_NAME):
            raise RequestError(
                f"the {what} {text!r} cannot be one of Kubernetes'",
                hint=f"small letters, digits and dashes, a letter first, at most {MOST_NAME}",
            )
    if not kube.image:
        raise RequestError("no image is named", hint="--image REGISTRY/NAME:TAG, with gdist installed in it")
    if job.secret_file:
        raise RequestError("pods have their secret from a Secret, not from a file", hint="--secret-name NAME")
    if kube.prefetch and (job.then or kube.train_image):
        raise RequestError("a prefetch runs nothing after the fetch", hint="leave --prefetch out, or --then")
    if kube.prefetch and kube.volume == "emptyDir" and "://" not in job.dest:
        raise RequestError(
            "a prefetch into emptyDir is gone with the pod", hint="--volume hostPath, or --volume pvc:NAME"
        )
    stem, port = f"{name}-hosts-0" if kube.jobset else name, job.port or PORT
    http = HTTP_PORT if port != HTTP_PORT else PORT
    numbers = f"[0-{job.count - 1}]" if job.count > 1 else "0"
    return render(
        "kubernetes.yaml.j2",
        **job.values(),
        kube=kube,
        name=name,
        mount=_mount(job.dest),
        volume=_volume(kube.volume, job.dest),
        hosts=f"{stem}-{numbers}.{name}:{port}",
        port=port,
        http=http,
        command=(*job.command, "--http", f"0.0.0.0:{http}"),
        secret=secrets.token_hex(SECRET_BYTES),
        memory=_memory(kube.memory),
        storage=parse_bytes(kube.storage, "storage") if kube.storage else 0,
        selector=pairs(kube.node_selector, "--node-selector"),
        backoff=RESTARTS * job.count,
    )


def _mount(dest: str) -> str:
    """Where the volume is mounted: above DEST, because a volume's own directory may not be empty."""
    if "://" in dest:
        return "/gdist-work"
    above = posixpath.dirname(posixpath.normpath(dest))
    return posixpath.normpath(dest) if above == "/" else above


def _volume(kind: str, dest: str) -> tuple[str, str]:
    """The kind of volume, and the claim's name or the node's path."""
    kind, _, claim = kind.partition(":")
    if kind == "pvc" and _LABEL.fullmatch(claim):
        return "pvc", claim
    if kind not in ("emptyDir", "hostPath") or claim:
        raise RequestError(f"volume {kind!r} is none", hint=f"one of {', '.join(VOLUMES)}")
    return kind, _mount(dest)


def _memory(asked: str) -> int:
    """Mebibytes that a fetch needs."""
    return ((parse_memory(asked) if asked else DEFAULT_MEMORY) + BESIDE_BYTES) >> 20
