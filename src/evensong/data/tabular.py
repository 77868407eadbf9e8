"""Columns out of CSV and Parquet files, local or on S3, in whatever encoding and with whatever separator.

Whoever calls says which columns it needs and what to call them; an error names the file, the column and the row.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

import polars as pl

from evensong.data import storage
from evensong.errors import SourceError, StorageError
from evensong.types import Frame

log = logging.getLogger(__name__)

PARQUET = (".parquet", ".pq")
TEXT = tuple(f".{kind}{packed}" for packed in ("", ".gz") for kind in ("csv", "tsv", "txt", "dat"))
WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods")
#: Other endings that data has, and that nobody should miss without a word.
UNREAD = (*WORKBOOKS, ".json", ".jsonl", ".ndjson", ".avro", ".orc", ".feather", ".zip", ".bz2", ".xz", ".zst")
SEPARATORS = (",", "\t", ";", "|")
#: What a text file may begin with to say how it is encoded; the longer marks first.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
#: How files begin that are no text, whatever their ending says.
OTHER_KINDS = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a ZIP archive or a workbook",
    b"BZh": "a file packed by bzip2",
    b"\x28\xb5\x2f\xfd": "a file packed by Zstandard",
    b"SQLite format 3": "a SQLite database, which is sqlite:///PATH",
}
#: Types of events that stand for themselves, where one is asked for and no column has the name.
EVENT_TYPES = ("impression", "view", "click", "cart", "purchase", "rating", "return", "dwell")


@dataclass(frozen=True)
class TextFormat:
    """How a text file is written, where that cannot be seen from itself."""

    separator: str | None = None
    """None: the most frequent one in the first line."""
    encoding: str | None = None
    """None: by its mark, else UTF-8, else Windows-1252 line by line."""
    header: bool = True
    """Whether the first line names the columns; else they are called 1, 2, 3, …"""
    other_separators: bool = False
    """A file whose first line lacks the separator is written in another way, as where one is not named."""


def files(location: str) -> list[str]:
    """The data files of a location, sorted: the file itself, or every CSV and Parquet file below the folder.

    Raises:
        SourceError: nothing is there, or nothing that can be read.
    """
    return list(_files(location, with_marks=False))


def fingerprints(location: str) -> dict[str, str]:
    """Each data file with a mark that changes when the file does: size and time of change, or S3's ETag.

    Raises:
        SourceError: nothing is there, or nothing that can be read.
    """
    return _files(location, with_marks=True)


def columns(uri: str, text: TextFormat | None = None) -> list[str]:
    """The names of a file's columns.

    Raises:
        SourceError: it has none, or is not what its ending says.
    """
    return list(_open(uri, text or TextFormat()).columns)


def read_file(
    uri: str, wanted: Mapping[str, str], text: TextFormat | None = None, asked: Mapping[str, str] | None = None
) -> Frame:
    """The columns `wanted` (new name to the file's name), typed as the file types them; a text file gives strings.

    `asked` says by what a person asked for each of them, for messages.

    A field of a nested column is named with a dot (`product.id`), and a folder such as `date=2026-01-10` on the way to
    the file is a column too.

    Raises:
        SourceError: a column is not there (with the nearest one's name), or the file is not what its ending says.
    """
    found = _open(uri, text or TextFormat())
    check_columns(uri, found.columns, wanted, asked)
    if twice := sorted(set(wanted.values()) & found.twice):
        raise SourceError(f"{uri}: column {twice[0]!r} stands there more than once; rename one of them")
    with _reading(uri):
        return found.rows.select(found.columns[name].alias(new) for new, name in wanted.items()).collect()


def check_columns(
    where: str, there: Iterable[str], columns: Mapping[str, str], asked: Mapping[str, str] | None = None
) -> None:
    """Raise a SourceError for the first column that is not there, with the nearest name beside it."""
    names = list(there)
    for wanted, name in columns.items():
        if name not in names:
            others = EVENT_TYPES if wanted == "event_type" else ()
            note = f" (which may also be one of {', '.join(others)})" if others else ""
            near = difflib.get_close_matches(name, [*names, *others], 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            what = (asked or {}).get(wanted, wanted)
            raise SourceError(f"{where}: no column {name!r} for {what}{note}; it has {few(map(repr, names), 40)}{hint}")


def first_line(error: object) -> str:
    """The first line of what an error says."""
    return str(error).strip().split("\n")[0]


def few(names: Iterable[str], most: int = 12) -> str:
    """The first names of a list, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


# ---------------------------------------------------------------- places


def _files(location: str, *, with_marks: bool) -> dict[str, str]:
    try:
        if not storage.exists(location):
            raise SourceError(f"{location}: expected a CSV or Parquet file or folder, found nothing; check the path")
        if storage.is_file(location):
            found = {location: storage.fingerprint(location)}
        else:
            listed = storage.fingerprints(location) if with_marks else dict.fromkeys(storage.list_files(location), "")
            found = {uri: mark for uri, mark in listed.items() if not _is_hidden(uri, location)}
    except StorageError as error:
        raise SourceError(str(error)) from error
    data = {uri: mark for uri, mark in found.items() if uri.lower().endswith((*PARQUET, *TEXT))}
    if not data:
        kinds = ", ".join((*PARQUET, *TEXT))
        books = any(uri.lower().endswith(WORKBOOKS) for uri in found)
        hint = "; save each sheet of a workbook as CSV (in Excel: Save As, CSV UTF-8) and import that" if books else ""
        raise SourceError(
            f"{location}: expected a file ending in {kinds}, found {few(found) or 'an empty folder'}{hint}"
        )
    if unread := [uri for uri in found if uri.lower().endswith(UNREAD)]:
        log.warning("%s: passed over, for they are neither CSV nor Parquet: %s", location, few(unread))
    return data


def _is_hidden(uri: str, folder: str) -> bool:
    """Whether the file, or a folder on the way to it from `folder`, begins with a dot or an underscore: not data."""
    below = uri.removeprefix(folder) if storage.is_remote(folder) else os.path.relpath(uri, folder)
    return any(part.startswith((".", "_")) for part in below.split("/"))


def _partitions(uri: str) -> dict[str, pl.Expr]:
    """The columns that folders such as `date=2026-01-10` on the way to a file stand for."""
    found = dict(part.split("=", 1) for part in uri.split("/")[:-1] if re.fullmatch(r"\w[^=]*=.*", part))
    null = "__HIVE_DEFAULT_PARTITION__"
    return {name: pl.lit(None if value == null else unquote(value), pl.String) for name, value in found.items()}


# ---------------------------------------------------------------- content


@dataclass(frozen=True)
class _Opened:
    """A file's rows, not read yet where that is possible, and how to take each column out of them."""

    rows: pl.LazyFrame
    columns: dict[str, pl.Expr]
    twice: frozenset[str] = frozenset()
    """Names that stand in the header more than once."""


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Let whatever goes wrong within be a SourceError about the file."""
    try:
        yield
    except (pl.exceptions.PolarsError, StorageError, OSError, EOFError, zlib.error) as error:
        raise SourceError(
            f"{uri}: cannot be read: {first_line(error)}; is it the file that its ending says, and whole?"
        ) from error


def _open(uri: str, text: TextFormat) -> _Opened:
    with _reading(uri):
        if uri.lower().endswith(PARQUET):
            rows = pl.scan_parquet(io.BytesIO(storage.read_bytes(uri)) if storage.is_remote(uri) else uri)
            return _Opened(rows, _partitions(uri) | dict(_nested(rows.collect_schema())))
        return _open_text(uri, storage.read_bytes(uri), text)


def _nested(
    schema: Mapping[str, pl.DataType], parent: pl.Expr | None = None, prefix: str = ""
) -> Iterator[tuple[str, pl.Expr]]:
    """Every column, and every field of the nested ones by its dotted name."""
    for name, dtype in schema.items():
        column = pl.col(name) if parent is None else parent.struct.field(name)
        yield prefix + name, column
        if isinstance(dtype, pl.Struct):
            yield from _nested(dtype.to_schema(), column, f"{prefix}{name}.")  # type: ignore[arg-type]


def _open_text(uri: str, content: bytes, text: TextFormat) -> _Opened:
    content = _utf8(uri, content, text.encoding).lstrip(b"\r\n")
    if b"\n" not in content:
        content = content.replace(b"\r", b"\n")
    first = content.split(b"\n", 1)[0].decode().rstrip("\r")
    if not first.strip():
        raise SourceError(f"{uri}: expected a header and rows, found an empty file")
    named = text.separator is not None and text.separator in first
    mark = str(text.separator) if named else max(SEPARATORS, key=re.sub('"[^"]*"', "", first).count)
    if text.separator is not None and not named and not text.other_separators:
        seems = f"there {mark!r} seems to be one; " if mark in first else ""
        raise SourceError(
            f"{uri}: expected columns between {text.separator!r}, and the first line holds none, {first[:80]!r}; "
            f"{seems}correct --separator, or leave it away"
        )
    if len(mark.encode()) > 1:
        # a separator of several characters gives way to one that no text file holds
        content, first, mark = content.replace(mark.encode(), b"\x1f"), first.replace(mark, "\x1f"), "\x1f"
    rows = _parsed(uri, content, mark, text.header)
    # what has nothing in any column is an empty line, or one that a spreadsheet has left behind
    rows = rows.filter(~pl.all_horizontal(pl.all().is_null()))
    names = next(csv.reader([first], delimiter=mark), []) if text.header else []
    if not text.header:
        rows.columns = [str(number + 1) for number in range(rows.width)]
    elif len({name.strip() for name in rows.columns}) == rows.width:
        names, rows.columns = [name.strip() for name in names], [name.strip() for name in rows.columns]
    twice = frozenset(name for name in names if names.count(name) > 1)
    return _Opened(rows.lazy(), _partitions(uri) | {name: pl.col(name) for name in rows.columns}, twice)


def _parsed(uri: str, content: bytes, mark: str, header: bool) -> Frame:
    """The rows of a text file, as text; where its quotes do not pair, as in `7" vinyl`, they stand for themselves."""
    try:
        rows = pl.read_csv(content, separator=mark, infer_schema=False, has_header=header)
        if rows.height + header >= content.count(b"\n"):
            return rows
        failed = None
    except pl.exceptions.PolarsError as error:
        failed = error
    # a quote spans lines, or has no partner; where every line has all of its cells, it was never meant to
    if len({line.count(mark.encode()) for line in content.split(b"\n") if line.strip()}) > 1:
        if failed is None:
            return rows
        _refuse_ragged(uri, content.decode(), mark)
        raise failed
    rows = pl.read_csv(content, separator=mark, infer_schema=False, has_header=header, quote_char=None)
    rows.columns = [re.sub('^"(.*)"$', r"\1", name) for name in rows.columns]
    bare = pl.all().str.replace('^"(.*)"$', "$1").str.replace_all('""', '"', literal=True)
    return rows.with_columns(pl.when(pl.all().str.contains('^".*"$')).then(bare).otherwise(pl.all()))


def _utf8(uri: str, content: bytes, encoding: str | None) -> bytes:
    """The content of a text file as UTF-8 without a mark."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    for mark, kind in OTHER_KINDS.items():
        if content.startswith(mark):
            raise SourceError(f"{uri}: expected text, found {kind}; give it its own ending, or unpack it")
    for mark, name in MARKS.items():
        if content.startswith(mark):
            content, encoding = content.removeprefix(mark), name
            break
    try:
        if encoding is not None:
            content = content.decode(encoding).encode()
    except (UnicodeDecodeError, LookupError) as error:
        raise SourceError(
            f"{uri}: cannot be decoded as {encoding}: {error}; say how it is encoded with --encoding, such as cp1251"
        ) from error
    try:
        content.decode()
    except UnicodeDecodeError:
        # a file that several hands wrote may be one thing in one line and another in the next
        content = "\n".join(_line(line) for line in content.split(b"\n")).encode()
    if (place := content.find(b"\0")) >= 0:
        row = content.count(b"\n", 0, place) + 1
        raise SourceError(
            f"{uri}: line {row}: expected text, found a NUL byte; remove it, or say how the file is encoded with "
            "--encoding, such as utf-16-le"
        )
    return content


def _line(line: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            continue
    return line.decode("latin-1")


def _refuse_ragged(uri: str, text: str, mark: str) -> None:
    """Raise a SourceError for the first row with more fields than the first line has; none has: return."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    try:
        width = len(next(lines, []))
        for row in lines:
            if len(row) > width:
                raise SourceError(
                    f"{uri}: line {lines.line_num}: expected {width} fields between {mark!r}, found {len(row)}: "
                    f"{few(map(repr, row), 8)}; quote what holds a separator, or name another one with --separator"
                )
    except csv.Error:
        return
