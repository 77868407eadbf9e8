"""The ledger of the champion's moves: append-only JSON lines, each holding the hash of the line before.

It lies beside the registry's database; with artifacts on S3 every line is an object there as well, written only if
nobody wrote that number before, so that machines share one ledger. MLflow remembers number and hash of the newest line,
and each line what MLflow remembered before it, so a line cut off, edited or added at the end is found too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from evensong.data import storage
from evensong.errors import BusyError, RegistryError, StorageError, UnusableReasonError
from evensong.registry import tracking
from evensong.settings import Settings
from evensong.types import Value

GENESIS = "0" * 64
#: `adopt`: a person acknowledges where another hand moved the alias, or what the check of the ledger found.
Kind = Literal["promote", "rollback", "adopt"]
#: Characters of a reason as JSON, so that what a move intends fits into a tag of MLflow's.
MAX_REASON = 4000


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
    anchor: str | None = None
    """What MLflow remembered as the newest line when this move began, as `head`; empty: nothing. None in old lines."""
    acknowledged: tuple[str, ...] = ()
    """What the check found before, in its own words, and a person has settled with this line."""


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
    anchor: str | None = None,
    acknowledged: Sequence[str] = (),
) -> Line:
    """Write the next line, whole and flushed to disk; the caller holds the registry's lock.

    Raises:
        BusyError: another machine wrote this line's number first.
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
        anchor=anchor,
        acknowledged=tuple(acknowledged),
    )
    text = _text(line)
    if folder := _shared_folder(settings):
        uri = storage.join(folder, _name(line.number))
        try:
            storage.create_bytes(uri, text.encode())
        except StorageError as error:
            if storage.is_file(uri):
                raise BusyError(f"line {line.number}: another machine wrote it first; try again") from error
            raise
    _put(settings, line.number, text)
    return line


def head(settings: Settings) -> str:
    """`number:hash` of the newest line; `0:` and zeros for an empty ledger."""
    texts = _texts(settings)
    return f"{len(texts)}:{hash_of(texts[-1]) if texts else GENESIS}"


def end(settings: Settings) -> tuple[str | None, int | None]:
    """Where the newest line left the alias, and how many lines there are; the second is None if one cannot be read."""
    try:
        lines = [_parse(text, number) for number, text in enumerate(_texts(settings), 1)]
    except RegistryError:
        return None, None
    return (lines[-1].to_version if lines else None), len(lines)


def checked_reason(text: str) -> str:
    """The words as they will stand in the ledger, without blanks around them.

    Raises:
        UnusableReasonError: there are none, they are too long, or they hold what is no text.
    """
    words = text.strip()
    if not words:
        raise UnusableReasonError("reason: expected some words for the ledger, got none; say why the champion moves")
    if any(character < " " and character not in "\n\r\t" for character in words):
        raise UnusableReasonError("reason: expected text, got control characters; leave them out")
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise UnusableReasonError("reason: expected text, got half of a character; leave it out") from error
    if (size := len(json.dumps(words, ensure_ascii=False)) - 2) > MAX_REASON:
        raise UnusableReasonError(f"reason: expected at most {MAX_REASON:,} characters, got {size:,}; say it shorter")
    return words


def foreign(left_at: str | None, found: str | None) -> str:
    """That the alias is not where the ledger left it, in the words of the check."""
    return f"champion: the ledger left it at {_named(left_at)}, it points at {_named(found)}: another hand moved it"


def problems(settings: Settings, remembered: str) -> list[str]:
    """What is wrong with the ledger as it lies there: edits, gaps, lines cut off or added, differences to the copy.

    `remembered` is the head that MLflow keeps; empty when it keeps none. What a person has acknowledged is left out.
    """
    _synchronize(settings)
    texts = _texts(settings)
    found: list[str] = []
    settled: set[str] = set()
    previous, last_to = GENESIS, None
    for number, text in enumerate(texts, 1):
        try:
            line = _parse(text, number)
        except RegistryError as error:
            found.append(str(error))
        else:
            # A person acknowledges what was found before; no line speaks for itself.
            found = [problem for problem in found if problem not in line.acknowledged]
            found += _breaks(line, number, previous, last_to)
            settled |= set(line.acknowledged)
            last_to = line.to_version
        previous = hash_of(text)
    beside = [*_blank(settings), *_differences(settings, texts)]
    differences = [problem for problem in beside if problem not in settled]
    return [*found, *_forgotten(texts, remembered), *differences]


def _breaks(line: Line, number: int, previous: str, last_to: str | None) -> Iterator[str]:
    """Where a line does not follow from the one before."""
    if line.number != number:
        yield f"line {number}: carries the number {line.number}; a line was removed or inserted before it"
    if line.previous != previous:
        yield (
            f"line {number}: expects the line before to hash to {line.previous[:12]}…, found {previous[:12]}…; "
            f"line {number - 1} was edited, removed or inserted"
        )
    # With `adopt` a person has said that this is known.
    if (
        line.anchor is not None
        and line.kind != "adopt"
        and (line.anchor or f"0:{GENESIS}") != f"{number - 1}:{previous}"
    ):
        yield (
            f"line {number}: MLflow remembered {_short(line.anchor)} as the newest line when it was written, "
            f"the line before is {_short(f'{number - 1}:{previous}')}; lines before it were edited, removed or added"
        )
    if number > 1 and line.from_version != last_to:
        yield (
            f"line {number}: moved from {_named(line.from_version)}, but the line before left the alias at "
            f"{_named(last_to)}; another hand moved it in between"
        )


def _forgotten(texts: list[str], remembered: str) -> Iterator[str]:
    """Where the ledger's end is not the one that MLflow remembers."""
    number_text, _, expected = remembered.partition(":")
    if not (number_text.isdecimal() and expected):
        if texts:
            what = f"{remembered[:40]!r}" if remembered else "nothing"
            yield f"MLflow remembers {what} of the ledger's newest line: its tag was edited or removed"
        return
    number = int(number_text)
    if number > len(texts):
        yield (
            f"MLflow remembers {number} lines, the ledger has {len(texts)}; lines were cut off, or written on another "
            "machine that does not share this ledger: set mlflow_artifacts_uri to a place on S3 that all of them share"
        )
    elif number < len(texts):
        yield f"MLflow remembers {number} lines, the ledger has {len(texts)}; another hand added line {number + 1}"
    elif number and (hashed := hash_of(texts[-1])) != expected:
        yield (
            f"line {number}: MLflow remembers the hash {expected[:12]}…, found {hashed[:12]}…; "
            "it or a line before it was edited"
        )


def hash_of(text: str) -> str:
    """The SHA-256 of one line's text."""
    return hashlib.sha256(_bytes(text)).hexdigest()


def rest(settings: Settings) -> list[str]:
    """What stands behind the last line and is none: a writer that died leaves half of one until the next line comes."""
    *complete, left = _content(settings).split(b"\n")
    number = sum(bool(text.strip()) for text in complete)
    return [f"after line {number} stand {len(left)} bytes that are no line; another hand added them"] if left else []


def _blank(settings: Settings) -> Iterator[str]:
    """The blank lines of this machine's file: nobody reads them, and no mover leaves them."""
    number = 0
    for text in _content(settings).split(b"\n")[:-1]:
        if text.strip():
            number += 1
        else:
            yield f"a blank line stands after line {number}; another hand added it"


def _differences(settings: Settings, texts: list[str]) -> list[str]:
    """Where the copy on S3 is not this machine's ledger."""
    folder = _shared_folder(settings)
    if not folder:
        return []
    found = []
    copies = {uri: mark.strip('"') for uri, mark in storage.fingerprints(folder).items()}
    for number, text in enumerate(texts, 1):
        uri = storage.join(folder, _name(number))
        md5 = copies.pop(uri, None)
        if md5 is None:
            found.append(f"line {number}: its copy was removed from {folder}")
        elif md5 != hashlib.md5(_bytes(text), usedforsecurity=False).hexdigest():
            # The ETag of a store that encrypts is no MD5: then the content decides.
            copy = _decoded(storage.read_bytes(uri))
            if copy != text:
                found.append(
                    f"line {number}: hashes to {hash_of(text)[:12]}… on this machine, its copy at {uri} to "
                    f"{hash_of(copy)[:12]}…; one of them was edited"
                )
    return found + [f"{uri}: is no line of the ledger; another hand put it there" for uri in sorted(copies)]


def _synchronize(settings: Settings) -> None:
    """Bring lines that other machines wrote to the shared folder into this machine's file."""
    folder = _shared_folder(settings)
    if not folder:
        return
    copies = set(storage.list_files(folder))
    number = len(_texts(settings)) + 1
    while (uri := storage.join(folder, _name(number))) in copies:
        _put(settings, number, _decoded(storage.read_bytes(uri)))
        number += 1


def _content(settings: Settings) -> bytes:
    path = path_of(settings)
    return path.read_bytes() if path.is_file() else b""


def _texts(settings: Settings) -> list[str]:
    content = _content(settings)
    complete = content[: content.rfind(b"\n") + 1]
    return [_decoded(text) for text in complete.split(b"\n") if text.strip()]


def _put(settings: Settings, number: int, text: str) -> None:
    """Make the text this machine's line of that number, if it is not there yet: a reader may have copied it in first.

    Raises:
        RegistryError: the line is there with another text, or the one before it is not.
    """
    path = path_of(settings)
    with tracking.locked(settings, "ledger", wait_seconds=30):
        texts = _texts(settings)
        if number <= len(texts) and texts[number - 1] == text:
            return
        if number != len(texts) + 1:
            raise RegistryError(
                f"line {number}: expected to write it after line {number - 1}, the ledger has {len(texts)} lines; "
                "run `evensong registry ledger --verify`"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            # A writer that died in the middle of a line never made it a line: its half goes.
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(_bytes(text) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _parse(text: str, number: int) -> Line:
    try:
        return Line.model_validate_json(_bytes(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        raise RegistryError(
            f"line {number}: expected a move as JSON, {where}: {first['msg']}; "
            "the ledger was edited by hand, restore it from its copy"
        ) from error


# Bytes that are no UTF-8 are kept as they are: what somebody wrote into a line must be told, not crash its reader.
def _decoded(content: bytes) -> str:
    return content.decode(errors="surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _shared_folder(settings: Settings) -> str | None:
    artifacts = settings.model_artifacts
    return storage.join(artifacts, "ledger", settings.registry.model_name) if storage.is_remote(artifacts) else None


def _name(number: int) -> str:
    return f"{number:08d}.json"


def _text(line: Line) -> str:
    return json.dumps(line.model_dump(mode="json"), sort_keys=True)


def _named(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _short(head: str) -> str:
    number, _, hashed = head.partition(":")
    return f"line {number} ({hashed[:12]}…)" if hashed else "none"
