"""What all hosts of a job must have been asked to do."""

from __future__ import annotations

from typing import Any

from gdist.run.cluster.options import ClusterOptions
from gdist.run.resolve import resolve


def job_of(source: str, options: ClusterOptions) -> dict[str, Any]:  # Any: a document of the wire
    """It by the words that are used when hosts disagree."""
    asked = options.fetch
    info_hash = resolve(source, asked.manifest, asked.verify_key).info_hash
    rules = asked.rules
    return {
        "info-hash": [h for h in (info_hash.v1_hex, info_hash.v2_hex) if h],
        "number of hosts": asked.host.count,
        "mesh": str(asked.mesh),
        "rules": str(rules) if rules else "those of the release",
        "codec": asked.codec,
        "type": asked.dtype or "as stored",
        "choice of tensors": sorted(set(asked.select)),
        "ignored files": sorted(set(asked.ignore)),
        "profile": asked.profile or "any",
        "exchange": options.exchange,
    }
