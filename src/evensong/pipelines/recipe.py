"""What a run is made of: settings, seed, code, libraries, data. Two runs of a night with all of it the same are one."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from evensong.data import storage
from evensong.features.columns import load_columns
from evensong.registry import aliases, bundle
from evensong.registry.versions import ModelVersion
from evensong.settings import Section, Settings
from evensong.types import Night

#: The columns' file as an artifact of the night's run, and the parameter with the SHA-256 of its text.
COLUMNS, COLUMNS_DIGEST = "columns.yaml", "columns.sha256"
#: Sections of the settings that say how a night is judged, kept and served, and not what it makes.
_NOT_OF_THE_RECIPE = ("airflow", "quality", "registry", "serving")


def params(settings: Settings, night: Night) -> dict[str, Any]:
    """Everything in the settings that decides the outcome, and nothing of where things lie."""
    values: dict[str, Any] = {f"night.{key}": value for key, value in night.model_dump(mode="json").items()}
    for part, section in settings:
        if isinstance(section, Section) and part not in _NOT_OF_THE_RECIPE:
            values |= {f"{part}.{key}": value for key, value in section.model_dump(mode="json").items()}
    text = columns(settings)
    mark = hashlib.sha256(text.encode()).hexdigest() if text is not None else None
    return values | {"serving.filter": settings.serving.filter, COLUMNS_DIGEST: mark}


def columns(settings: Settings) -> str | None:
    """The text of people's own columns; none where `features.columns_path` names no file.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    path = settings.features.columns_path
    if path is None:
        return None
    load_columns(path)  # says what is wrong with it
    return path.read_text()


def digest(settings: Settings, night: Night) -> str:
    """One hash of what decides the night's bundle, known as soon as the training set lies there."""
    meta = settings.run_uri(night.run_id, "training_set", "meta.json")
    what = {
        "params": params(settings, night),
        "code_commit": bundle.code_commit(settings),
        "code": _code(),
        "libraries": bundle.library_versions(),
        "lake_versions": storage.read_json(meta)["lake_versions"] if storage.exists(meta) else {},
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def rival(settings: Settings, night: Night) -> ModelVersion | None:
    """The champion that the night is compared with, and continues from where it asks for the champion."""
    return aliases.rival(settings, night.as_of, digest(settings, night))


@functools.cache
def _code() -> str:
    """A hash of this package's source: the commit does not tell one change that nobody committed from another."""
    root = Path(__file__).resolve().parents[1]
    mark = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        mark.update(f"{path.relative_to(root).as_posix()}\0".encode())
        mark.update(hashlib.sha256(path.read_bytes()).digest())
    return mark.hexdigest()
