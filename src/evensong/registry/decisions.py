"""The gate's decision on a model version: stored once an evidence, as an artifact whose hash is in the tags."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from evensong.errors import RegistryError
from evensong.registry import versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import PromotionDecision

ARTIFACT = "decision.json"


def store(
    settings: Settings, version: ModelVersion, decision: PromotionDecision, *, evidence: str, compared_with: str | None
) -> str:
    """Put the decision on the version and return its hash.

    `evidence` is the hash of what was judged, `compared_with` the champion's version. The tag of the evidence comes
    last, so a store that was killed is done again.
    """
    content = _content(decision)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, ARTIFACT)
        path.write_bytes(content)
        versions.attach(settings, version, path)
    digest = hashlib.sha256(content).hexdigest()
    versions.set_tags(
        settings,
        version.version,
        {
            "compared_with": compared_with or "none",
            "gate_reasons": "\n".join(decision.reasons)[:5000],
            "decision_hash": digest,
            "gate": outcome(decision),
        },
    )
    versions.set_tags(settings, version.version, {"evidence_hash": evidence})
    return digest


def read(settings: Settings, version: ModelVersion) -> PromotionDecision:
    """The stored decision.

    Raises:
        RegistryError: the version has none, or it is not the one whose hash the tags hold.
    """
    expected = version.tags.get("decision_hash")
    if expected is None:
        raise RegistryError(f"version {version.version}: expected a gate's decision, found none; run the gate first")
    content = versions.read_attached(settings, version, ARTIFACT)
    if (found := hashlib.sha256(content).hexdigest()) != expected:
        raise RegistryError(
            f"version {version.version}: its decision should hash to {expected[:12]}…, found {found[:12]}…; "
            "it was edited, or the gate was killed while it wrote: run the gate again"
        )
    return PromotionDecision.model_validate_json(content)


def outcome(decision: PromotionDecision) -> str:
    """`promote`, `keep` or `review`."""
    if decision.needs_review:
        return "review"
    return "promote" if decision.promote else "keep"


def _content(decision: PromotionDecision) -> bytes:
    return json.dumps(decision.model_dump(mode="json"), indent=2, sort_keys=True).encode()
