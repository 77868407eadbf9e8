"""SQL tables as sources, through SQLAlchemy: found by reflection, read whole, and no password ever shown or stored."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import NoneType
from typing import Any

import polars as pl

from evensong.data import storage
from evensong.data.tabular import check_columns, few, first_line
from evensong.errors import SourceError
from evensong.types import Frame

DRIVERS = {"postgres": "postgresql", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
BATCH_ROWS = 100_000
KINDS = "a path, s3://bucket/prefix, an SQLAlchemy URL (postgresql://, mysql:// or sqlite:///), or env:NAME for one"


def is_sql(location: str) -> bool:
    """Whether the location is an SQLAlchemy URL, or the environment variable that holds one (`env:NAME`)."""
    return location.startswith("env:") or ("://" in location and not storage.is_remote(location))


def read(location: str, table: str | None, columns: Mapping[str, str], asked: Mapping[str, str] | None = None) -> Frame:
    """The table's `columns`, found by reflection, sorted so that the database's own order never matters.

    `asked` says by what a person asked for each of them, for messages.

    Raises:
        SourceError: the URL, the driver, the server, the table or a column is not there. No message shows the password.
    """
    import sqlalchemy as sa

    engine, secret = _engine(location)
    if table is None:
        raise SourceError(f"{shown(location)}: an SQL source needs a table; name it with --table")
    try:
        reflected = _reflect(engine, table, location)
        there = [column.name for column in reflected.columns]
        check_columns(f"{shown(location)} table {table}", there, columns, asked)
        query = sa.select(*(reflected.columns[name].label(wanted) for wanted, name in columns.items()))
        with engine.connect().execution_options(yield_per=BATCH_ROWS) as connection:
            parts = [_batch(rows, list(columns)) for rows in connection.execute(query).partitions()]
    except sa.exc.SQLAlchemyError as error:
        said = _hide(first_line(getattr(error, "orig", None) or error), secret)
        raise SourceError(f"{shown(location)}: cannot be read: {said}; check the address and the account") from None
    finally:
        engine.dispose()
    if not parts:
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.String()))
    rows = pl.concat(parts, how="vertical_relaxed")
    return rows.sort([name for name in rows.columns if not rows.schema[name].is_nested()], maintain_order=True)


def sql_url(location: str) -> Any:
    """The SQLAlchemy URL, with `env:NAME` and `${NAME}` replaced from the environment."""
    text = _variable(location.removeprefix("env:"), location) if location.startswith("env:") else location
    reference = re.compile(r"\$\{(\w+)\}")
    url = _parsed(text, location)
    if url.password and reference.search(str(url.password)):
        found = reference.sub(lambda match: _variable(match[1], location), str(url.password))
        url = url.set(password=found)
    if url.drivername in DRIVERS:
        url = url.set(drivername=DRIVERS[url.drivername])
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
        raise SourceError(f"{shown(location)}: expected a SQLite file, found none; check the path")
    return url


def absolute(location: str) -> str:
    """The location as it means the same in every process: a SQLite file by its absolute path.

    Raises:
        SourceError: it is no URL, or of a scheme that nothing here reads.
    """
    import sqlalchemy as sa

    if location.startswith("env:"):
        return location
    url = _parsed(location, location)
    try:
        url.set(drivername=DRIVERS.get(url.drivername, url.drivername)).get_dialect()
    except sa.exc.NoSuchModuleError:
        scheme = location.partition("://")[0]
        raise SourceError(
            f"{shown(location)}: {scheme}:// is not read; expected {KINDS}; copy the data there, and give that place"
        ) from None
    except ModuleNotFoundError:
        pass  # a database that is known, without its driver: whoever connects says so
    if url.get_backend_name() == "sqlite" and url.database and not url.database.startswith((":", "/", "file:")):
        return str(url.set(database=str(Path(url.database).absolute())).render_as_string(hide_password=False))
    return location.rstrip("/")


def shown(location: str) -> str:
    """The location as it may be printed: any password hidden."""
    return re.sub(r"(://[^:/@?#]*):.*@", r"\1:***@", location) if "://" in location else location


def without_secret(location: str, name: str) -> str:
    """The location as it may be stored: a password becomes `${SOURCE_<NAME>_PASSWORD}`, read at each ingest.

    Raises:
        SourceError: a secret stands in the URL's query, where it cannot be told from an option.
    """
    if location.startswith("env:"):
        return location
    url = _parsed(location, location)
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


def _parsed(text: str, location: str) -> Any:
    import sqlalchemy as sa

    try:
        return sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        # the message would repeat the text, and the text may hold a password
        raise SourceError(f"{shown(location)}: expected {KINDS}") from None


def _engine(location: str) -> tuple[Any, str]:
    """The engine and its password, which no message may show."""
    import sqlalchemy as sa

    url = sql_url(location)
    try:
        return sa.create_engine(url), str(url.password or "")
    except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
        said = _hide(str(error), str(url.password or ""))
        raise SourceError(f"{shown(location)}: expected {KINDS}: {said}") from error


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
    raise SourceError(f"{shown(location)}: no table {table!r}; it has {few(names) or 'none'}{hint}")


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


def _hide(text: str, secret: str) -> str:
    return text.replace(secret, "***") if secret else text
