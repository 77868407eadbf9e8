"""A night's Data Docs as they are shown: a first page of ours, then GX's own, each by itself and nothing beside them.

GX's pages take their look, their signs of success and failure and the whole of their first page from scripts and styles
of five servers elsewhere. Here nothing is fetched and no script runs: a style of our own stands in, and the first page
is made from what `validate` reported.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from evensong.data import storage
from evensong.errors import StorageError
from evensong.pipelines.validate import docs_uri
from evensong.settings import Settings

FIRST = "index.html"
NIGHT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{6}")
#: Folders and pages as GX names them; a part never begins with a dot.
PAGE = re.compile(r"(?:[\w+-][\w .+-]*/)*[\w+-][\w .+-]*\.html")


def page(settings: Settings, run_id: str, name: str) -> str:
    """One page as HTML.

    Raises:
        StorageError: the night has none of that name, or it is no name of a page.
    """
    if not NIGHT.fullmatch(run_id) or not PAGE.fullmatch(name):
        raise StorageError(f"{run_id}/{name}: expected a night and a page of its Data Docs; open {FIRST} of a night")
    text = _first(settings, run_id) if name == FIRST else _read(docs_uri(settings, run_id), name)
    style = resources.files(__package__).joinpath("docs_pages.css").read_text()
    return text.replace("</head>", f"<style>{style}</style>\n</head>", 1)


def _first(settings: Settings, run_id: str) -> str:
    uri = settings.run_uri(run_id, "validation.json")
    try:
        report: dict[str, Any] = storage.read_json(uri)
    except StorageError as error:
        raise StorageError(
            f"the night {run_id}: expected what `validate` found, there is none; it has not come so far: read its log"
        ) from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files(__package__).joinpath("docs_pages.html.j2").read_text())
    return template.render(report=report, pages=_pages(docs_uri(settings, run_id)))


def _pages(root: str) -> list[tuple[str, str]]:
    """Title and relative address of what GX wrote about each thing that it was asked."""
    names = [uri.removeprefix(root).lstrip("/") for uri in storage.list_files(root)]
    found = [name for name in names if name.startswith("validations/") and PAGE.fullmatch(name)]
    return [(name.split("/")[1], quote(name)) for name in found]


def _read(root: str, name: str) -> str:
    uri = storage.join(root, name)
    outside = not storage.is_remote(uri) and not Path(uri).resolve().is_relative_to(Path(root).resolve())
    if outside:
        raise StorageError(f"{name}: leads out of the night's Data Docs")
    return storage.read_bytes(uri).decode()
