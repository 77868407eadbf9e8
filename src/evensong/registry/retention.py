"""Which bundles may go: never a champion of the last few, never one that waits for a person; dry run first.

A version itself stays for ever, with its metrics, decision and dossier; what goes is its bundle in the artifact store,
what the night's steps left in the run's folder, and the copy in this machine's cache.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from evensong.data import storage
from evensong.registry import aliases, bundle, ledger, review, tracking, versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import Value

COLLECTED = "collected"
#: What the steps of a night leave beside their small JSON documents.
RUN_PARTS = ("training_set", "retriever", "ranker", "index", "final", "bundle", "checkpoints")


class Plan(Value):
    """What the rule says of one version."""

    version: str
    as_of: datetime
    action: Literal["keep", "collect", "collected"]
    why: str


def plan(settings: Settings) -> list[Plan]:
    """The rule on every version, newest first; nothing is changed."""
    found = versions.listed(settings)
    rule = settings.registry
    champions = _champions(settings, rule.keep_champions)
    newest = {version.version for version in found[: rule.keep_versions]}
    return [_judge(version, champions, newest, rule.keep_versions) for version in found]


def collect(settings: Settings, *, dry_run: bool = True) -> list[Plan]:
    """Remove what the rule lets go and return the plan; with `dry_run` just the plan.

    The rule is asked again under the lock of the champion's mover, so no version is promoted while its bundle goes. A
    version is marked before its files go: killed in between, the next call finishes.

    Raises:
        BusyError: the champion is being moved.
    """
    if dry_run:
        return plan(settings)
    with aliases.held(settings):
        planned = plan(settings)
        known = {version.version: version for version in versions.listed(settings)}
        kept_runs = {known[one.version].tags.get("run_id") for one in planned if one.action == "keep"}
        for one in planned:
            if one.action == "keep":
                continue
            version = known[one.version]
            if one.action == "collect":
                versions.set_tags(settings, version.version, {COLLECTED: datetime.now(UTC).isoformat()})
            _remove(settings, version, with_run=version.tags.get("run_id") not in kept_runs)
    return planned


def prefetch(settings: Settings) -> list[Path]:
    """Fetch and verify the bundles of the last champions, so that a rollback finds them on this machine's disk."""
    wanted = aliases.recent_champions(settings, settings.registry.keep_champions)
    return [bundle.fetch(settings, version) for version in wanted]


def _judge(version: ModelVersion, champions: list[str], newest: set[str], keep_versions: int) -> Plan:
    action: Literal["keep", "collect", "collected"] = "keep"
    if COLLECTED in version.tags:
        action, why = "collected", f"went at {version.tags[COLLECTED]}"
    elif version.aliases:
        why = f"carries the alias {', '.join(version.aliases)}"
    elif version.version in champions:
        why = f"one of the last {len(champions)} champions"
    elif review.is_waiting(version):
        why = "waits for a person's review"
    elif version.version in newest:
        why = f"one of the newest {keep_versions} versions"
    else:
        action, why = "collect", f"neither a recent champion nor one of the newest {keep_versions} versions"
    return Plan(version=version.version, as_of=version.as_of, action=action, why=why)


def _champions(settings: Settings, count: int) -> list[str]:
    """The last champions by the ledger and those that a rollback may return to; blocked ones count in the former."""
    distinct: list[str] = []
    for line in reversed(ledger.read(settings)):
        if line.to_version not in distinct:
            distinct.append(line.to_version)
    return sorted({*distinct[:count], *aliases.recent_champions(settings, count)}, key=int)


def _remove(settings: Settings, version: ModelVersion, *, with_run: bool) -> None:
    if version.model_id:
        storage.remove_folder(storage.join(tracking.artifact_location(settings, version.model_id), "data"))
    if with_run and (run_id := version.tags.get("run_id")):
        for part in RUN_PARTS:
            storage.remove_folder(settings.run_uri(run_id, part))
    shutil.rmtree(settings.place("serving", "bundles", f"v{version.version}"), ignore_errors=True)
