"""The ledger of the champion's moves: append-only JSON lines, each holding the hash of the line before.

It lies beside the registry's database; with artifacts on S3 every line is an object there as well, written only if
nobody wrote that number before, so that machines share one ledger. MLflow keeps the hash of the newest line, so a line
cut off at the end is found too.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from evensong.data import storage
from evensong.errors import RegistryError
from evensong.settings import Settings
from evensong.types import Value

GENESIS = "0" * 64
Kind = Literal["promote", "rollback", "adopt"]


class Line(Value):
    """One move of the champion."""

    number: int = Field(ge=1)
    at: datetime
    kind: Kind
    actor: str
    """`rule:gate`, `rule:deadline` …, or `person:NAME`."""
    from_version: str | None
    to_version: str
    digest: str = ""
    """The bundle's that became champion."""
    decision: str | None = None
    """SHA-256 of the gate's decision that this move obeyed."""
    reason: str
    move: str
    """The move's own id: the same in its intent and in its line."""
    recovered: bool = False
    """The mover died after the alias moved; a later command wrote this line."""
    previous: str
    """SHA-256 of the line before."""


def path_of(settings: Settings) -> Path:
    """The ledger's file on this machine."""
    return Path(settings.place("mlflow", "ledger.jsonl"))


def read(settings: Settings) -> list[Line]:
    """Every line, oldest first, after fetching those that other machines wrote.

    Raises:
        RegistryError: a line cannot be read at all; `verify` says more.
    """
    _synchronize(settings)
    return [_parse(text, number) for number, text in enumerate(_texts(settings), 1)]


def append(
    settings: Settings,
    *,
    kind: Kind,
    actor: str,
    from_version: str | None,
    to_version: str,
    digest: str,
    decision: str | None,
    reason: str,
    move: str,
    at: datetime | None = None,
    recovered: bool = False,
) -> Line:
    """Write the next line, whole and flushed to disk; the caller holds the registry's lock.

    Raises:
        RegistryError: another machine wrote this line's number first.
    """
    _synchronize(settings)
    texts = _texts(settings)
    line = Line(
        number=len(texts) + 1,
        at=at or datetime.now(UTC),
        kind=kind,
        actor=actor,
        from_version=from_version,
        to_version=to_version,
        digest=digest,
        decision=decision,
        reason=reason,
        move=move,
        recovered=recovered,
        previous=hash_of(texts[-1]) if texts else GENESIS,
    )
    text = _text(line)
    if folder := _shared_folder(settings):
        storage.create_bytes(storage.join(folder, _name(line.number)), text.encode())
    _append_text(path_of(settings), text)
    return line


def head(settings: Settings) -> str:
    """`number:hash` of the newest line; `0:` and zeros for an empty ledger."""
    texts = _texts(settings)
    return f"{len(texts)}:{hash_of(texts[-1]) if texts else GENESIS}"


def problems(settings: Settings, anchor: str | None = None) -> list[str]:
    """What is wrong with the ledger as it lies there: edits, gaps, lines cut off, differences to the copy.

    `anchor` is the head that the registry remembers.
    """
    _synchronize(settings)
    found = []
    texts = _texts(settings)
    previous = GENESIS
    last_to: str | None = None
    for number, text in enumerate(texts, 1):
        try:
            line = _parse(text, number)
        except RegistryError as error:
            found.append(str(error))
            previous = hash_of(text)
            continue
        if line.number != number:
            found.append(f"line {number}: carries the number {line.number}; a line was removed or inserted before it")
        if line.previous != previous:
            found.append(
                f"line {number}: expects the line before to hash to {line.previous[:12]}…, found {previous[:12]}…; "
                f"line {number - 1} was edited, removed or inserted"
            )
        if number > 1 and line.from_version != last_to:
            found.append(
                f"line {number}: moved from {_named(line.from_version)}, but the line before left the alias at "
                f"{_named(last_to)}; another hand moved it in between"
            )
        last_to = line.to_version
        previous = hash_of(text)
    if anchor is not None:
        number_text, _, expected = anchor.partition(":")
        number = int(number_text)
        if number > len(texts):
            found.append(f"the registry remembers {number} lines, the ledger has {len(texts)}; lines were cut off")
        elif number and hash_of(texts[number - 1]) != expected:
            hashed = hash_of(texts[number - 1])
            found.append(
                f"line {number}: the registry remembers the hash {expected[:12]}…, found {hashed[:12]}…; "
                "it or a line before it was edited"
            )
    return found + _differences(settings, texts)


def hash_of(text: str) -> str:
    """The SHA-256 of one line's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _differences(settings: Settings, texts: list[str]) -> list[str]:
    folder = _shared_folder(settings)
    if not folder:
        return []
    found = []
    for number, uri in enumerate(storage.list_files(folder), 1):
        if not uri.endswith(_name(number)):
            found.append(f"the ledger's copy misses line {number}; it was removed from {folder}")
            break
        if number <= len(texts) and storage.read_bytes(uri).decode() != texts[number - 1]:
            found.append(f"line {number}: this machine's ledger and the copy at {uri} differ; one of them was edited")
    return found


def _synchronize(settings: Settings) -> None:
    """Bring lines that other machines wrote to the shared folder into this machine's file."""
    folder = _shared_folder(settings)
    if not folder:
        return
    known = len(_texts(settings))
    for uri in storage.list_files(folder)[known:]:
        _append_text(path_of(settings), storage.read_bytes(uri).decode())


def _texts(settings: Settings) -> list[str]:
    path = path_of(settings)
    content = path.read_text() if path.is_file() else ""
    complete = content[: content.rfind("\n") + 1]
    return [text for text in complete.split("\n") if text.strip()]


def _append_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        # A writer that died in the middle of a line never made it a line: its half goes.
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _parse(text: str, number: int) -> Line:
    try:
        return Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        raise RegistryError(
            f"line {number}: expected a move as JSON, {where}: {first['msg']}; "
            "the ledger was edited by hand, restore it from its copy"
        ) from error


def _shared_folder(settings: Settings) -> str | None:
    artifacts = settings.model_artifacts
    return storage.join(artifacts, "ledger", settings.registry.model_name) if storage.is_remote(artifacts) else None


def _name(number: int) -> str:
    return f"{number:08d}.json"


def _text(line: Line) -> str:
    return json.dumps(line.model_dump(mode="json"), sort_keys=True)


def _named(version: str | None) -> str:
    return f"v{version}" if version else "no version"
