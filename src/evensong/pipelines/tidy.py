"""Removes what killed steps left: drafts beside their places, halves of downloads. A night begins with it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from evensong.data import storage
from evensong.settings import Settings

log = logging.getLogger(__name__)

#: The names under which everything is written before it is moved to its place, and under which it is moved away.
DRAFT = re.compile(r"\.fetch-.+|\..+\.(?:[0-9a-f]{32}|[0-9]+\.[0-9]+|draft)(?:\.old)?")
#: A step that still writes has touched its draft since.
MIN_AGE_SECONDS = 86_400.0


def sweep(settings: Settings, min_age_seconds: float = MIN_AGE_SECONDS) -> list[str]:
    """Remove every draft below `home` that nobody has touched for so long; their paths."""
    removed = []
    for path in drafts(settings, min_age_seconds):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(str(path))
    if removed:
        log.info("%d drafts of killed steps removed: %s", len(removed), ", ".join(removed))
    return removed


def drafts(settings: Settings, min_age_seconds: float = MIN_AGE_SECONDS) -> list[Path]:
    """The drafts on this machine that nobody has touched for so long."""
    rooms = [settings.place(name) for name in ("serving", "judged", "simulator", "mlflow", "demo", "feast")]
    places = {place for place in (settings.lake, settings.artifacts, *rooms) if not storage.is_remote(place)}
    latest = time.time() - min_age_seconds
    return sorted(path for place in places for path in _drafts(Path(place)) if _touched(path) < latest)


def _drafts(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        found = [name for name in [*names, *files] if DRAFT.fullmatch(name)]
        # what lies in a draft goes with it
        names[:] = [name for name in names if name not in found]
        yield from (Path(folder, name) for name in found)


def _touched(path: Path) -> float:
    try:
        seen = path.lstat()
    except FileNotFoundError:
        return float("inf")
    # a folder that was moved away keeps the time of its content
    return max(seen.st_mtime, seen.st_ctime)
