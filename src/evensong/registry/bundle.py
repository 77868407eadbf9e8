"""The bundle as a directory of hashed files: written with a manifest, verified, fetched; its content stays unknown."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pickletools
import shutil
import subprocess
import tempfile
import uuid
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evensong.errors import BundleError, RegistryError
from evensong.settings import Settings

MANIFEST = "manifest.json"
FORMAT = 1
#: The bundle's folder inside an MLflow model's artifacts.
ARTIFACT_PATH = "data/bundle"
#: Beside it, where the bundle was refit: the models that were judged, which had not seen the held-out days.
JUDGED_PATH = "judged"
#: What the bundle's manifest, and the version's tag, call the digest of that folder.
JUDGED_DIGEST = "judged_digest"

#: Files that some loader would unpickle; none may stand in a bundle.
PICKLE_SUFFIXES = {".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".pt", ".pth", ".ckpt"}
#: Opcodes with which a pickle calls code; a stream of opcodes without any of them is plain data by chance.
_CALLING = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}

LIBRARIES = (
    "evensong",
    "torch",
    "numpy",
    "polars",
    "pyarrow",
    "safetensors",
    "faiss-cpu",
    "feast",
    "mlflow",
    "deltalake",
)


def write_manifest(directory: Path, **metadata: Any) -> dict[str, Any]:
    """Hash every file of the directory into `manifest.json` and return the manifest.

    The manifest holds `format`, `files` (relative name to SHA-256) and the metadata: `as_of`, `train_cutoff`,
    `lake_versions`, `feature_service`, `code_commit`, `libraries`, `seed` … Give no clock time or path of this machine,
    so that the same night makes the same bytes.

    Raises:
        BundleError: the directory is empty, or holds a link, a pickle or a name that leaves it.
    """
    files = {name: _sha256(path) for name, path in _files(directory).items()}
    if not files:
        raise BundleError(f"{directory}: expected the files of a bundle, found none; assemble it before the manifest")
    for name in files:
        _refuse_pickle(directory / name)
    plain = json.loads(json.dumps(metadata, default=_plain))
    manifest = {"format": FORMAT, "files": files, **plain}
    draft = directory / f".{MANIFEST}.{uuid.uuid4().hex}"
    draft.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    draft.replace(directory / MANIFEST)
    return manifest


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest as it stands, nothing verified but its shape.

    Raises:
        BundleError: there is none, or it is no manifest.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(
            f"{path}: expected the bundle's manifest, found none; fetch or assemble the bundle again"
        ) from error
    except ValueError as error:
        raise BundleError(f"{path}: expected JSON, got {error}; fetch or assemble the bundle again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise BundleError(f"{path}: expected an object with `files`; fetch or assemble the bundle again")
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"{path}: expected bundle format {FORMAT}, got {manifest.get('format')!r}; "
            "use the release of Evensong that wrote it, or register the night again"
        )
    return manifest


def verify(directory: Path, expected_digest: str | None = None) -> dict[str, Any]:
    """Compare every file with the manifest and return the manifest.

    Raises:
        BundleError: a file is missing, extra, a link, a pickle or of another hash, or the digest is another.
    """
    manifest = read_manifest(directory)
    if expected_digest is not None and (found := digest(directory)) != expected_digest:
        raise BundleError(
            f"{directory}: expected the bundle {expected_digest}, found {found}; remove the folder, it is fetched again"
        )
    stated: dict[str, str] = manifest["files"]
    for name in stated:
        _refuse_escape(directory, name)
    found_files = _files(directory)
    if missing := sorted(stated.keys() - found_files.keys()):
        raise BundleError(f"{directory}: the manifest names {missing[0]}, which is missing; fetch the bundle again")
    if extra := sorted(found_files.keys() - stated.keys()):
        raise BundleError(
            f"{directory}: {extra[0]} is not in the manifest; remove it, or assemble and register the bundle again"
        )
    for name, expected in sorted(stated.items()):
        if (actual := _sha256(found_files[name])) != expected:
            raise BundleError(
                f"{directory / name}: expected SHA-256 {expected}, found {actual}; the file was changed or damaged: "
                "remove the folder and fetch the bundle again, or roll back to the version before"
            )
        _refuse_pickle(found_files[name])
    return manifest


def digest(directory: Path) -> str:
    """One hash for the whole bundle: the SHA-256 of its manifest, which holds that of every file."""
    path = directory / MANIFEST
    if not path.is_file():
        raise BundleError(f"{path}: expected the bundle's manifest, found none; fetch or assemble the bundle again")
    return _sha256(path)


def digest_of(manifest: bytes) -> str:
    """The digest of the bundle that this is the manifest of."""
    return hashlib.sha256(manifest).hexdigest()


def fetch(settings: Settings, version: str) -> Path:
    """The bundle of a model version in the local cache, verified now; downloaded when it is not there or is damaged.

    Raises:
        RegistryError: there is no such version, or the registry cannot be reached.
        BundleError: what the registry holds has not the hashes that were registered.
    """
    registered = _registered(settings, version)
    target = Path(settings.place("serving", "bundles", f"v{registered.version}"))
    return _fetched(settings, registered, ARTIFACT_PATH, registered.tags.get("bundle_digest"), target)


def fetch_judged(settings: Settings, version: str) -> Path | None:
    """The models of the version as they were judged, before its refit; None when the bundle itself was judged.

    Raises:
        RegistryError: there is no such version, or the registry cannot be reached.
        BundleError: what the registry holds has not the hashes that were registered.
    """
    registered = _registered(settings, version)
    expected = registered.tags.get(JUDGED_DIGEST)
    if expected is None:
        return None
    target = Path(settings.place("judged", f"v{registered.version}"))
    return _fetched(settings, registered, JUDGED_PATH, expected, target)


def cached(settings: Settings, version: str) -> Path | None:
    """The verified bundle if it already is in the local cache; nothing is downloaded and the registry is not asked."""
    target = Path(settings.place("serving", "bundles", f"v{version}"))
    if not target.is_dir():
        return None
    verify(target)
    return target


def size_bytes(directory: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def code_commit(settings: Settings) -> str:
    """The commit that runs: from the settings, else from git with `-dirty` when files differ, else `unknown`."""
    if settings.code_commit:
        return settings.code_commit
    root = Path(__file__).resolve().parents[3]
    try:
        named = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return named.stdout.strip() or "unknown"


def library_versions() -> dict[str, str]:
    """The installed versions of the libraries that a bundle's content depends on."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _registered(settings: Settings, version: str) -> Any:
    from evensong.registry import tracking

    version = str(version)
    with tracking.registry_errors(settings, f"model version {version}"):
        registered = tracking.client(settings).get_model_version(settings.registry.model_name, version)
    if when := registered.tags.get("collected"):
        raise RegistryError(
            f"model version {version}: its bundle was collected at {when} by the retention rule; "
            f"`evensong reproduce {version}` makes it anew and puts it back"
        )
    return registered


def _fetched(settings: Settings, registered: Any, artifact: str, expected: str | None, target: Path) -> Path:
    """The artifact's folder at `target`, verified now; downloaded when it is not there or is damaged."""
    from evensong.registry import tracking

    with tracking.locked(settings, f"{target.parent.name}-v{registered.version}", wait_seconds=600):
        if target.exists():
            try:
                verify(target, expected)
                return target
            except BundleError:
                shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as draft:
            folder = tracking.download(
                settings, f"models:/{settings.registry.model_name}/{registered.version}/{artifact}", Path(draft)
            )
            verify(folder, expected)
            folder.rename(target)
    return target


def _files(directory: Path) -> dict[str, Path]:
    found = {}
    for folder, names, files in os.walk(directory):
        for name in [*names, *files]:
            path = Path(folder) / name
            relative = path.relative_to(directory).as_posix()
            if path.is_symlink():
                raise BundleError(
                    f"{directory}: {relative} is a link; a bundle holds plain files only, copy the file in"
                )
            if path.is_file() and relative != MANIFEST:
                _refuse_escape(directory, relative)
                found[relative] = path
    return dict(sorted(found.items()))


def _refuse_escape(directory: Path, name: str) -> None:
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or name.startswith("/") or ".." in parts or "" in parts:
        raise BundleError(
            f"{directory}: the name {name!r} leads out of the bundle; refuse this bundle and ask who made it"
        )


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLE_SUFFIXES or _holds_pickle(path):
        raise BundleError(
            f"{path}: a pickle, which can run code when it is loaded; save weights as safetensors or ONNX instead"
        )


def _holds_pickle(path: Path) -> bool:
    """Whether the content is a pickle, a zip archive with one inside (as torch.save writes), or an array of objects."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                return any(Path(name).suffix.lower() in PICKLE_SUFFIXES for name in archive.namelist())
        except zipfile.BadZipFile:
            return False
    if head.startswith(b"\x93NUMPY"):
        return b"|O" in head
    return _is_pickle(path)


def _is_pickle(path: Path) -> bool:
    # A safetensors file may begin like a pickle by chance (its first bytes are a length), so the opcodes decide.
    calls = False
    with path.open("rb") as file, warnings.catch_warnings():
        # Bytes that are no pickle may look like a badly escaped string on the way.
        warnings.simplefilter("ignore")
        try:
            for opcode, _, _ in pickletools.genops(file):
                calls = calls or opcode.name in _CALLING
                if opcode.name == "STOP":
                    return calls
        except Exception:
            return False
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
