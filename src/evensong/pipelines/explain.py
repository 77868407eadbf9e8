"""One served recommendation, back to where it came from: variant, version, index, features, lake, Airflow run."""

from __future__ import annotations

import json
from typing import Any

from evensong.errors import RequestNotFoundError
from evensong.monitoring import request_log
from evensong.monitoring.request_log import Record
from evensong.registry import bundle, commands, ledger
from evensong.settings import Settings

#: The service follows this alias and nothing else.
VARIANT = "champion"


def run(settings: Settings, request_id: str) -> dict[str, Any]:
    """Everything that decided the answer to a logged request.

    Raises:
        RequestNotFoundError: no record has this id; the message says why that may be.
        RegistryError: the version that answered is no longer in the registry.
    """
    record = request_log.find(settings, request_id)
    if record is None:
        raise RequestNotFoundError(_why_unknown(settings, request_id))
    origin = commands.origin(settings, record.model_version)
    return {
        "request": {
            "request_id": record.request_id,
            "at": record.at.isoformat(),
            "user_id": record.user_id,
            "k": record.k,
            "filter": record.filter,
            "exclude_item_ids": record.exclude_item_ids,
            "num_hidden": record.num_hidden,
            "context": record.context,
        },
        "recommendations": [
            {
                "rank": item["rank"],
                "item_id": item["item_id"],
                "title": (item.get("features") or {}).get("title"),
                "score": item["score"],
                "source": item["source"],
            }
            for item in record.items
        ],
        "source": record.source,
        "reason": record.reason,
        "variant": {"name": VARIANT, "since": _since(settings, record)},
        "model": {"name": record.model_name}
        | {
            name: origin[name]
            for name in ("version", "as_of", "bundle_digest", "code_commit", "seed", "mlflow_run", "decision_hash")
        },
        "index": _index(settings, record, origin["files"]),
        "features": _features(record, origin),
        "lake_versions": origin["lake_versions"],
        "airflow_run": origin["airflow_run"],
    }


def _why_unknown(settings: Settings, request_id: str) -> str:
    share = settings.serving.request_log_sample
    if not request_log.is_sampled(request_id, share):
        return (
            f"{request_id}: not in the sample of logged requests, serving.request_log_sample is {share:g}; "
            "raise it to explain the requests to come"
        )
    return (
        f"{request_id}: no logged request has this id in {request_log.place(settings)}; take it from an answer's "
        "`request_id`. It may have come faster than serving.request_log_per_second allows, or be older than "
        "serving.request_log_days or serving.request_log_megabytes keep"
    )


def _since(settings: Settings, record: Record) -> dict[str, Any] | None:
    """The move that had made the version champion when the request came."""
    moves = [line for line in ledger.read(settings) if line.to_version == record.model_version]
    before = [line for line in moves if line.at <= record.at]
    if not before:
        return None
    line = before[-1].model_dump(mode="json")
    return {name: line[name] for name in ("number", "at", "actor", "reason")}


def _index(settings: Settings, record: Record, files: dict[str, str]) -> dict[str, Any]:
    """What the index says of itself, and the hashes of its files; only these where the bundle was collected."""
    hashes = {name: digest for name, digest in files.items() if name.startswith("index/")}
    if "index/index.json" not in files:
        return {"files": hashes}
    said = json.loads((bundle.fetch(settings, record.model_version) / "index" / "index.json").read_bytes())
    return {**said, "files": hashes}


def _features(record: Record, origin: dict[str, Any]) -> dict[str, Any]:
    """Each value that the funnel read with its feature's full name and version, as the bundle recorded them."""
    recorded = origin["features"] if isinstance(origin["features"], dict) else {}
    versions: dict[str, str] = recorded.get("versions", {})
    full = {name.partition(".")[2]: name for name in versions}

    def told(values: dict[str, Any] | None, entity: str) -> list[dict[str, Any]]:
        return [
            {"name": full.get(name, name), "value": value, "version": versions.get(full.get(name, name))}
            for name, value in (values or {}).items()
            # a view that no model reads stays empty, and its features have no version
            if name != entity and (name in full or value is not None)
        ]

    return {
        "service": recorded.get("service", origin["feature_service"]),
        "dictionary_version": recorded.get("dictionary_version"),
        "as_of": record.features_as_of,
        "table_versions": record.feature_versions or {},
        "user": told(record.user_features, "user_id"),
        "items": {item["item_id"]: told(item.get("features"), "item_id") for item in record.items},
    }
