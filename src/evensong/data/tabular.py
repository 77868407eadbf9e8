"""Columns from outside: CSV and Parquet files, local or on S3, and SQL tables, turned into ids, times and numbers.

Whoever calls says which columns it needs and what to call them; an error names the column, the value and the row.
"""

from __future__ import annotations

import difflib
import gzip
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import NoneType
from typing import Any, cast

import polars as pl
from botocore.exceptions import BotoCoreError, ClientError

from evensong.data import storage
from evensong.errors import SourceError, StorageError
from evensong.types import TIMESTAMP, Frame

PARQUET = (".parquet", ".pq")
TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
SEPARATORS = (",", "\t", ";", "|")
#: What else could have been meant by a column that is not there.
NOTES = {"event_type": " (which may also be one of impression, view, click, cart, purchase, rating, return, dwell)"}
#: What text files write where there is nothing.
NOTHING = ("", "null", "none", "nan", "nat", "\\n")
DRIVERS = {"postgres": "postgresql", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
BATCH_ROWS = 100_000

TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y/%m/%d %H:%M:%S%.f",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
)
ZONED_FORMATS = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z", "%Y/%m/%d %H:%M:%S%.f%#z")
#: Unix times by size: below the bound, the factor that makes microseconds of them.
UNIX_UNITS = ((1e11, 1_000_000.0), (1e14, 1_000.0), (1e17, 1.0), (float("inf"), 1e-3))


def is_sql(location: str) -> bool:
    """Whether the location is an SQLAlchemy URL, or the environment variable that holds one (`env:NAME`)."""
    return location.startswith("env:") or ("://" in location and not storage.is_remote(location))


def files(location: str) -> list[str]:
    """The data files of a location, sorted: the file itself, or every CSV and Parquet file below the folder.

    Raises:
        SourceError: nothing is there, or nothing that can be read.
    """
    try:
        if not storage.exists(location):
            raise SourceError(f"{location}: expected a CSV or Parquet file or folder, found nothing; check the path")
        found = (
            [location]
            if _is_file(location)
            else [uri for uri in storage.list_files(location) if not _is_hidden(uri, location)]
        )
    except (StorageError, BotoCoreError, ClientError) as error:
        raise SourceError(f"{location}: cannot be listed: {error}; check the bucket and boto3's credentials") from error
    names = [uri for uri in found if uri.lower().endswith((*PARQUET, *TEXT))]
    if not names:
        kinds = ", ".join((*PARQUET, *TEXT))
        raise SourceError(f"{location}: expected a file ending in {kinds}, found {_few(found) or 'an empty folder'}")
    return names


def _is_hidden(uri: str, folder: str) -> bool:
    """Whether the file, or a folder on the way to it from `folder`, begins with a dot or an underscore: not data."""
    below = uri.removeprefix(folder) if storage.is_remote(folder) else os.path.relpath(uri, folder)
    return any(part.startswith((".", "_")) for part in below.split("/"))


def fingerprints(location: str) -> dict[str, str]:
    """Each data file with a mark that changes when the file does: size and time of change, or S3's ETag."""
    return {uri: storage.fingerprint(uri) for uri in files(location)}


def columns(uri: str, separator: str | None = None) -> list[str]:
    """The names of a file's columns.

    Raises:
        SourceError: it has none, or is not what its ending says.
    """
    return _open(uri, separator)[0]


def read_file(uri: str, wanted: Mapping[str, str], separator: str | None = None) -> Frame:
    """The columns `wanted` (new name to the file's name), typed as the file types them; a text file gives strings.

    Raises:
        SourceError: a column is not there (with the nearest one's name), or the file is not what its ending says.
    """
    names, rows = _open(uri, separator)
    check_columns(uri, names, wanted)
    try:
        return rows.select(pl.col(name).alias(new) for new, name in wanted.items()).collect()
    except pl.exceptions.PolarsError as error:
        raise SourceError(
            f"{uri}: cannot be read: {_first_line(error)}; is it the file that its ending says?"
        ) from error


def read_sql(location: str, table: str | None, columns: Mapping[str, str]) -> Frame:
    """The table's `columns`, found by reflection, sorted so that the database's own order never matters.

    Raises:
        SourceError: the URL, the driver, the server, the table or a column is not there. No message shows the password.
    """
    import sqlalchemy as sa

    url = sql_url(location)
    if table is None:
        raise SourceError(f"{shown(location)}: an SQL source needs a table; name it with --table")
    try:
        engine = sa.create_engine(url)
    except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
        raise SourceError(
            f"{shown(location)}: expected postgresql://, mysql:// or sqlite:///: {_hide(str(error), url)}"
        ) from error
    try:
        reflected = _reflect(engine, table, location)
        check_columns(f"{shown(location)} table {table}", [column.name for column in reflected.columns], columns)
        query = sa.select(*(reflected.columns[name].label(wanted) for wanted, name in columns.items()))
        with engine.connect().execution_options(yield_per=BATCH_ROWS) as connection:
            parts = [_batch(rows, list(columns)) for rows in connection.execute(query).partitions()]
    except sa.exc.SQLAlchemyError as error:
        said = _hide(_first_line(getattr(error, "orig", None) or error), url)
        raise SourceError(f"{shown(location)}: cannot be read: {said}; check the address and the account") from None
    finally:
        engine.dispose()
    if not parts:
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.String()))
    rows = pl.concat(parts, how="vertical_relaxed")
    return rows.sort([name for name in rows.columns if not rows.schema[name].is_nested()], maintain_order=True)


def sql_url(location: str) -> Any:
    """The SQLAlchemy URL, with `env:NAME` and `${NAME}` replaced from the environment."""
    import sqlalchemy as sa

    text = _variable(location.removeprefix("env:"), location) if location.startswith("env:") else location
    reference = re.compile(r"\$\{(\w+)\}")
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        # the message would repeat the text, and the text may hold a password
        raise SourceError(f"{shown(location)}: expected an SQLAlchemy URL, dialect://user@host/database") from None
    if url.password and reference.search(str(url.password)):
        found = reference.sub(lambda match: _variable(match[1], location), str(url.password))
        url = url.set(password=found)
    if url.drivername in DRIVERS:
        url = url.set(drivername=DRIVERS[url.drivername])
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
        raise SourceError(f"{shown(location)}: expected a SQLite file, found none; check the path")
    return url


def shown(location: str) -> str:
    """The location as it may be printed: any password hidden."""
    return re.sub(r"(://[^:/@?#]*):.*@", r"\1:***@", location) if "://" in location else location


def without_secret(location: str, name: str) -> str:
    """The location as it may be stored: a password becomes `${SOURCE_<NAME>_PASSWORD}`, read at each ingest.

    Raises:
        SourceError: a secret stands in the URL's query, where it cannot be told from an option.
    """
    import sqlalchemy as sa

    if location.startswith("env:"):
        return location
    try:
        url = sa.make_url(location)
    except (sa.exc.ArgumentError, ValueError):
        raise SourceError(f"{shown(location)}: expected an SQLAlchemy URL, dialect://user@host/database") from None
    if any(re.search("pass|pwd|secret|token|odbc_connect", key, re.IGNORECASE) for key in url.query):
        raise SourceError(
            f"{shown(location.partition('?')[0])}: a secret in the URL's query cannot be kept out of the register; "
            "put the whole URL in an environment variable and give env:NAME"
        )
    if not url.password or re.fullmatch(r"\$\{\w+\}", str(url.password)):
        return location
    variable = password_variable(name)
    return re.sub(r"(://[^:/@?#]*):.*@", rf"\1:${{{variable}}}@", location)


def password_variable(name: str) -> str:
    """The environment variable from which the registered source `name` takes its password."""
    return f"SOURCE_{re.sub(r'[^A-Za-z0-9]+', '_', name).upper()}_PASSWORD"


def check_columns(where: str, there: Iterable[str], columns: Mapping[str, str]) -> None:
    """Raise a SourceError for the first column that is not there, with the nearest name beside it."""
    names = list(there)
    for wanted, name in columns.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            note = NOTES.get(wanted, "")
            raise SourceError(
                f"{where}: no column {name!r} for {wanted}{note}; it has {_few(map(repr, names), 40)}{hint}"
            )


def ids(column: pl.Series) -> pl.Series:
    """Ids as strings, whatever they were: 17850.0 becomes "17850", an empty string nothing."""
    if column.dtype.is_float() or column.dtype.is_decimal():
        numbers = column.cast(pl.Float64).fill_nan(None)
        whole = ((numbers == numbers.round(0)) & (numbers.abs() < 2**53)).all()
        return (numbers.cast(pl.Int64) if whole else numbers).cast(pl.String).alias(column.name)
    if column.dtype == pl.Binary:
        return column.bin.encode("hex")
    text = column.cast(pl.String).str.strip_chars()
    text = text.set(text == "", None)
    # a text file that once went through floats: all numbers, some with a trailing ".0"
    if text.str.contains(r"^-?\d+\.0$").any() and text.str.contains(r"^-?\d+(\.0)?$").all():
        text = text.str.strip_suffix(".0")
    return text


def numbers(column: pl.Series, where: str) -> pl.Series:
    """Numbers as 64-bit floats; what a text file writes for nothing, and NaN, becomes null.

    Raises:
        SourceError: a value is no number.
    """
    if column.dtype.is_numeric() or column.dtype == pl.Boolean or column.dtype == pl.Null:
        return column.cast(pl.Float64).fill_nan(None)
    text = _written(column)
    found = text.cast(pl.Float64, strict=False).fill_nan(None)
    _refuse(text, found, column, where, "a number", "correct it, or map another column")
    return found


def times(column: pl.Series, where: str, time_format: str | None = None) -> pl.Series:
    """Times in UTC, microseconds, from ISO text, dates, datetimes, or unix time in s, ms, µs or ns.

    A time without a zone is taken as UTC. The unit of unix times follows from the column's largest value.

    Raises:
        SourceError: a value is no time.
    """
    if column.dtype == pl.Date:
        return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if isinstance(column.dtype, pl.Datetime):
        moments = column.cast(pl.Datetime("us", column.dtype.time_zone))
        return moments.dt.convert_time_zone("UTC") if column.dtype.time_zone else moments.dt.replace_time_zone("UTC")
    if column.dtype == pl.Null:
        return column.cast(TIMESTAMP)
    if column.dtype.is_numeric():
        return _unix(column, where)
    if column.dtype not in (pl.String, pl.Categorical):
        raise SourceError(f"{where}: expected times, found {column.dtype}; map a column of times")
    text = _written(column)
    if time_format is None and text.len() > text.null_count() and text.str.contains(r"^-?\d+(\.\d+)?$").all():
        return _unix(text.cast(pl.Float64 if text.str.contains(".", literal=True).any() else pl.Int64), where)
    found = _from_text(text, time_format)
    _refuse(text, found, column, where, f"a time{f' like {time_format}' if time_format else ''}", _TIME_HINT)
    return found


_TIME_HINT = "correct it, or say how times are written with --time-format, such as %d.%m.%Y %H:%M"


def _from_text(text: pl.Series, time_format: str | None) -> pl.Series:
    if time_format is not None:
        try:
            found = text.str.to_datetime(time_format, strict=False, time_unit="us")
        except pl.exceptions.PolarsError as error:
            raise SourceError(f"time format {time_format!r}: {_first_line(error)}") from error
        zone = cast(pl.Datetime, found.dtype).time_zone
        return found.dt.convert_time_zone("UTC") if zone else found.dt.replace_time_zone("UTC")
    plain = text.str.replace(r"^(\d{4}[-/]\d{2}[-/]\d{2})[Tt]", "$1 ").str.replace(r" ?(?:Z|z|UTC|GMT)$", "+00:00")
    plain = plain.str.replace(r" ([+-]\d{2}:?\d{0,2})$", "$1")
    found = pl.Series(text.name, [None] * text.len(), dtype=TIMESTAMP)
    for shape, zoned in [*((f, False) for f in TIME_FORMATS), *((f, True) for f in ZONED_FORMATS)]:
        if not (found.is_null() & plain.is_not_null()).any():
            break
        read = plain.str.to_datetime(shape, strict=False, time_unit="us", time_zone="UTC" if zoned else None)
        found = found.zip_with(
            found.is_not_null(), read.dt.convert_time_zone("UTC") if zoned else read.dt.replace_time_zone("UTC")
        )
    return found


def _unix(column: pl.Series, where: str) -> pl.Series:
    known = column.fill_nan(None) if column.dtype.is_float() else column
    largest = cast(float | None, known.abs().max()) or 0.0
    factor = next(factor for bound, factor in UNIX_UNITS if largest < bound)
    if known.dtype.is_integer() and factor >= 1:
        moments = known.cast(pl.Int64) * int(factor)
    else:
        moments = (known.cast(pl.Float64) * factor).round(0).cast(pl.Int64)
    return moments.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _written(column: pl.Series) -> pl.Series:
    """The text of a column; what stands for nothing becomes null."""
    text = column.cast(pl.String).str.strip_chars()
    return text.set(text.str.to_lowercase().is_in(list(NOTHING)).fill_null(False), None)


def _refuse(text: pl.Series, found: pl.Series, column: pl.Series, where: str, expected: str, hint: str) -> None:
    bad = text.is_not_null() & found.is_null()
    if bad.any():
        row = cast(int, bad.arg_max())
        more = f" (and {int(bad.sum()) - 1} more)" if bad.sum() > 1 else ""
        raise SourceError(
            f"{where}: column {column.name!r}, row {row + 1}: expected {expected}, found {text[row]!r}{more}; {hint}"
        )


def _open(uri: str, separator: str | None) -> tuple[list[str], pl.LazyFrame]:
    """The names of a file's columns and its rows, not read yet where that is possible."""
    try:
        if uri.lower().endswith(PARQUET):
            rows = pl.scan_parquet(io.BytesIO(storage.read_bytes(uri)) if storage.is_remote(uri) else uri)
            return rows.collect_schema().names(), rows
        text = _text(storage.read_bytes(uri))
        header = text.split("\n", 1)[0].rstrip("\r")
        if not header.strip():
            raise SourceError(f"{uri}: expected a header and rows, found an empty file")
        mark = separator or max(SEPARATORS, key=header.count)
        content = io.BytesIO(text.encode())
        rows = pl.read_csv(content, separator=mark, infer_schema=False).lazy()
        return rows.collect_schema().names(), rows
    except (pl.exceptions.PolarsError, StorageError, OSError, BotoCoreError, ClientError) as error:
        raise SourceError(
            f"{uri}: cannot be read: {_first_line(error)}; is it the file that its ending says?"
        ) from error


def _reflect(engine: Any, table: str, location: str) -> Any:
    import sqlalchemy as sa

    inspector = sa.inspect(engine)
    schema, _, bare = table.rpartition(".")
    for name, place in ((table, None), (bare, schema or None)):
        if name in [*inspector.get_table_names(place), *inspector.get_view_names(place)]:
            return sa.Table(name, sa.MetaData(), schema=place, autoload_with=engine)
    names = sorted([*inspector.get_table_names(), *inspector.get_view_names()])
    near = difflib.get_close_matches(table, names, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise SourceError(f"{shown(location)}: no table {table!r}; it has {_few(names) or 'none'}{hint}")


def _batch(rows: Any, names: list[str]) -> Frame:
    values = zip(*rows, strict=True)
    return pl.DataFrame([_series(name, list(column)) for name, column in zip(names, values, strict=True)])


def _series(name: str, values: list[Any]) -> pl.Series:
    """A database's values as a column; what polars has no type for (UUIDs, enums, addresses) becomes text."""
    kinds = {type(value) for value in values} - {NoneType}
    if kinds == {memoryview}:
        values, kinds = [None if value is None else bytes(value) for value in values], {bytes}
    if kinds & {dict, list}:
        return pl.Series(name, [None if v is None else json.dumps(v, sort_keys=True, default=str) for v in values])
    if kinds == {datetime}:
        # one column may hold several offsets
        values = [value.astimezone(UTC) if value and value.tzinfo else value for value in values]
    if kinds <= {int, float} or kinds <= {Decimal} or (len(kinds) == 1 and kinds <= {str, bool, bytes, datetime, date}):
        return pl.Series(name, values, strict=False)
    return pl.Series(name, [None if value is None else str(value) for value in values], dtype=pl.String)


def _variable(name: str, location: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise SourceError(
            f"{shown(location)}: expected the environment variable {name}, it is not set; set it and retry"
        )
    return value


def _hide(text: str, url: Any) -> str:
    return text.replace(str(url.password), "***") if url.password else text


def _is_file(location: str) -> bool:
    if storage.is_remote(location):
        return location.lower().endswith((*PARQUET, *TEXT)) and location in storage.list_files(
            location.rpartition("/")[0]
        )
    return Path(location).is_file()


def _text(content: bytes) -> str:
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _first_line(error: object) -> str:
    return str(error).strip().split("\n")[0]


def _few(names: Iterable[str], most: int = 12) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
