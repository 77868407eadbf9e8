"""A night's Data Docs in the run's folder: a first page of ours before GX's own, each self-contained.

GX's pages take their look, their signs of success and failure and the whole of their first page from scripts and styles
of five servers elsewhere. Here nothing is fetched and no script runs: a style of our own stands in, and the first page
is made from what `validate` found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from evensong.data import storage
from evensong.errors import StorageError
from evensong.settings import Settings

DOCS, FIRST = "data_docs", "index.html"
NIGHT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{6}")
#: Folders and pages as GX names them; a part never begins with a dot.
PAGE = re.compile(r"(?:[\w+-][\w .+-]*/)*[\w+-][\w .+-]*\.html")
#: What GX's pages would fetch, and their advertisement.
_FETCHED = re.compile(r"<(script|style|footer)\b.*?</\1>|<(?:link|img)\b[^>]*>", re.DOTALL)


def docs_uri(settings: Settings, run_id: str, name: str = FIRST) -> str:
    """Where a page of a night's Data Docs lies."""
    return settings.run_uri(run_id, DOCS, name)


def publish(folder: Path, report: Mapping[str, Any], uri: str) -> None:
    """Put the pages that GX wrote into `folder` to the folder `uri`, behind a first page made from the report."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    for name in names:
        page = folder / name
        page.write_text(_styled(_FETCHED.sub("", page.read_text())))
    results = [name for name in names if name.startswith("validations/")]
    (folder / FIRST).write_text(_first(report, [(name.split("/")[1], quote(name)) for name in results]))
    storage.write_folder(folder, uri)


def read(settings: Settings, run_id: str, name: str) -> bytes:
    """One page.

    Raises:
        StorageError: the night has none of that name, or it is no name of a page.
    """
    if not NIGHT.fullmatch(run_id) or not PAGE.fullmatch(name):
        raise StorageError(f"{run_id}/{name}: expected a night and a page of its Data Docs; open {FIRST} of a night")
    uri, root = docs_uri(settings, run_id, name), settings.run_uri(run_id, DOCS)
    if not storage.is_remote(uri) and not Path(uri).resolve().is_relative_to(Path(root).resolve()):
        raise StorageError(f"{name}: leads out of the night's Data Docs")
    try:
        return storage.read_bytes(uri)
    except StorageError as error:
        raise StorageError(
            f"the night {run_id}: expected {name} of its Data Docs, there is none; `validate` has not come so far: "
            "read its log"
        ) from error


def _first(report: Mapping[str, Any], pages: list[tuple[str, str]]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files(__package__).joinpath("docs_pages.html.j2").read_text())
    return _styled(template.render(report=report, pages=pages))


def _styled(page: str) -> str:
    style = resources.files(__package__).joinpath("docs_pages.css").read_text()
    return page.replace("</head>", f"<style>{style}</style>\n</head>", 1)
