"""Which bundles may go: never a champion of the last few, never one that waits for a person; dry run first.

A version itself stays for ever, with its metrics, decision, dossier and manifest; what goes is its bundle in the
artifact store, what the night's steps left in the run's folder, and the copies in this machine's cache. With the
manifest, a bundle that was made anew is known for the same and can be put back.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from evensong.data import storage
from evensong.errors import BundleError, RegistryError
from evensong.registry import aliases, bundle, ledger, locks, review, tracking, versions
from evensong.registry.versions import COLLECTED, FOREIGN, ModelVersion
from evensong.settings import Settings
from evensong.types import Value

#: What the steps of a night leave beside their small JSON documents.
RUN_PARTS = ("training_set", "retriever", "ranker", "index", "final", "judged", "bundle", "checkpoints")
#: In the version's artifacts, what stays of a bundle that was collected.
MANIFEST = "bundle_manifest.json"


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
    champions = _champions(settings, found, rule.keep_champions)
    newest = {version.version for version in found[: rule.keep_versions]}
    return [_judge(version, champions, newest, rule.keep_versions) for version in found]


def collect(settings: Settings, *, dry_run: bool = True) -> list[Plan]:
    """Remove what the rule lets go and return the plan; with `dry_run` just the plan.

    The rule is asked again under the lock of the champion's mover, and a version is marked there before its files go:
    no version is promoted while its bundle goes, and what a killed call left is removed by the next.

    Raises:
        BusyError: the champion is being moved, or another one collects.
    """
    if dry_run:
        return plan(settings)
    with locks.held(settings, "retention"):
        with aliases.held(settings):
            planned = plan(settings)
            now = datetime.now(UTC).isoformat()
            for one in planned:
                if one.action == "collect":
                    versions.set_tags(settings, one.version, {COLLECTED: now})
        known = {version.version: version for version in versions.listed(settings)}
        kept_runs = {known[one.version].tags.get("run_id") for one in planned if one.action == "keep"}
        for one in planned:
            if one.action != "keep":
                version = known[one.version]
                _remove(settings, version, with_run=version.tags.get("run_id") not in kept_runs)
        forget(settings)
    return planned


def restore(settings: Settings, version: ModelVersion, directory: Path, judged: Path | None) -> bool:
    """Put a bundle that was made anew back in the place of the collected one; whether every file came out the same.

    `directory` is the new bundle, `judged` the folder of the models as they were judged, where there is one. Code and
    libraries that its manifest names may be others: what counts are the files.

    Raises:
        RegistryError: the version's bundle was not collected.
        BusyError: the retention rule is at work.
    """
    with locks.held(settings, "retention"), tempfile.TemporaryDirectory() as folder:
        if COLLECTED not in versions.get(settings, version.version).tags:
            raise RegistryError(f"version {version.version}: its bundle is there, nothing has to be put back")
        content = _manifest(settings, version)
        made = Path(folder, "bundle")
        try:
            shutil.copytree(directory, made)
            if content is not None:
                (made / bundle.MANIFEST).write_bytes(content)
            bundle.verify(made, version.digest)
            wanted = version.tags.get(bundle.JUDGED_DIGEST)
            if wanted is not None:
                if judged is None:
                    return False
                bundle.verify(judged, wanted)
        except BundleError:
            return False
        place = _artifacts(settings, version)
        storage.write_folder(made, storage.join(place, bundle.ARTIFACT_PATH))
        if wanted is not None and judged is not None:
            storage.write_folder(judged, storage.join(place, bundle.JUDGED_PATH))
        versions.delete_tag(settings, version.version, COLLECTED)
    return True


def manifest_of(settings: Settings, version: ModelVersion) -> dict[str, Any] | None:
    """The manifest of a version's bundle, collected or not; none where it was collected by an older release.

    Raises:
        RegistryError: the registry cannot be reached.
        BundleError: what the registry holds has not the hashes that were registered.
    """
    if COLLECTED not in version.tags:
        return bundle.read_manifest(bundle.fetch(settings, version.version))
    content = _manifest(settings, version)
    manifest: dict[str, Any] | None = json.loads(content) if content is not None else None
    return manifest


def forget(settings: Settings, keep: Collection[str] = ()) -> list[str]:
    """Remove from this machine's cache what the rule has collected, on whichever machine; the versions removed.

    Nobody can fetch those any more. `keep` names versions that stay all the same: one that still answers.
    """
    collected = {version.version for version in versions.listed(settings) if COLLECTED in version.tags} - set(keep)
    removed = set()
    for place in (settings.place("serving", "bundles"), settings.place("judged")):
        for version in collected:
            if Path(place, f"v{version}").exists():
                shutil.rmtree(Path(place, f"v{version}"), ignore_errors=True)
                removed.add(version)
    return sorted(removed, key=int)


def prefetch(settings: Settings) -> list[Path]:
    """Fetch and verify the bundles of the last champions, so that a rollback finds them on this machine's disk."""
    wanted = aliases.recent_champions(settings, settings.registry.keep_champions)
    return [bundle.fetch(settings, version) for version in wanted]


def _judge(version: ModelVersion, champions: list[str], newest: set[str], keep_versions: int) -> Plan:
    action: Literal["keep", "collect", "collected"] = "keep"
    if FOREIGN in version.tags:
        why = "was not registered by Evensong"
    elif COLLECTED in version.tags:
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


def _champions(settings: Settings, listed: list[ModelVersion], count: int) -> list[str]:
    """The last champions by the ledger and those that a rollback may return to; blocked ones count in the former."""
    aliases.recover_quietly(settings)
    lines = ledger.read(settings)
    distinct = list(dict.fromkeys(line.to_version for line in reversed(lines)))
    return sorted({*distinct[:count], *aliases.returnable(lines, listed)[:count]}, key=int)


def _remove(settings: Settings, version: ModelVersion, *, with_run: bool) -> None:
    place = _artifacts(settings, version)
    manifest = storage.join(place, bundle.ARTIFACT_PATH, bundle.MANIFEST)
    if storage.exists(manifest):  # else an earlier call was killed after this
        storage.write_bytes(storage.join(place, MANIFEST), storage.read_bytes(manifest))
    for folder in ("data", bundle.JUDGED_PATH):
        storage.remove_folder(storage.join(place, folder))
    if with_run and (run_id := version.tags.get("run_id")):
        for part in RUN_PARTS:
            storage.remove_folder(settings.run_uri(run_id, part))


def _manifest(settings: Settings, version: ModelVersion) -> bytes | None:
    """What stays of a collected bundle, if it is what was registered."""
    place = storage.join(_artifacts(settings, version), MANIFEST)
    if not storage.exists(place):
        return None
    content = storage.read_bytes(place)
    if (found := bundle.digest_of(content)) != version.digest:
        raise BundleError(
            f"{place}: expected the manifest of the bundle {version.digest}, found {found}; it was edited"
        )
    return content


def _artifacts(settings: Settings, version: ModelVersion) -> str:
    if version.model_id is None:
        raise RegistryError(f"version {version.version}: expected a logged model behind it; register the bundle again")
    return tracking.artifact_location(settings, version.model_id)
