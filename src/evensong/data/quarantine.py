"""The quarantine: the rows that validation did not let through, with the reason and the night that found them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

import polars as pl

from evensong.data.lake import KEYS, RAW, SCHEMAS, Lake, moment
from evensong.types import TABLES, TIMESTAMP, Frame

TABLE, RELEASED = "quarantine", "released"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%.6fZ"


def rows_of(table: str, bad: Frame, as_of: datetime) -> Frame:
    """The quarantine's rows for the bad raw rows of a table (raw columns and `reason`)."""
    columns = list(SCHEMAS[RAW + table])
    texts = [pl.col(name).dt.strftime(TIME_FORMAT) for name in columns if SCHEMAS[RAW + table][name] == TIMESTAMP]
    return bad.with_columns(texts).select(
        pl.lit(table).alias("table"),
        "reason",
        pl.struct(columns).struct.json_encode().alias("row"),
        pl.lit(as_of, dtype=TIMESTAMP).alias("as_of"),
    )


def keys(table: str, quarantined: Frame) -> Frame:
    """The keys of a table's quarantined rows, in the types of its raw table."""
    return decoded(table, quarantined).select(KEYS[RAW + table])


def decoded(table: str, quarantined: Frame) -> Frame:
    """A table's quarantined rows as the raw rows that they were."""
    schema = SCHEMAS[RAW + table]
    written = {name: pl.String() if dtype == TIMESTAMP else dtype for name, dtype in schema.items()}
    rows = quarantined.filter(pl.col("table") == table)
    found = rows.select(pl.col("row").str.json_decode(pl.Struct(written))).unnest("row")
    return found.with_columns(
        pl.col(name).str.to_datetime(TIME_FORMAT, time_unit="us", time_zone="UTC")
        for name, dtype in schema.items()
        if dtype == TIMESTAMP
    )


def without(quarantined: Frame, raw: Mapping[str, Frame]) -> Frame:
    """The quarantined rows that are none of these raw rows (table to rows)."""
    kept = []
    for table in TABLES:
        rows, found = quarantined.filter(pl.col("table") == table), keys(table, quarantined)
        with_keys = pl.concat([rows, found], how="horizontal")
        kept.append(with_keys.join(raw[table], found.columns, "anti", nulls_equal=True).select(rows.columns))
    return pl.concat(kept)


def replace(lake: Lake, rows: Frame, nights: Collection[datetime]) -> None:
    """Let the quarantine hold exactly `rows` for these nights; nothing is written when it does already."""
    held = lake.read(TABLE).filter(pl.col("as_of").is_in(list(nights)))
    order = ["table", "row"]
    if not held.sort(order).equals(rows.select(held.columns).sort(order)):
        lake.replace(TABLE, rows, " OR ".join(f"as_of = {moment(as_of)}" for as_of in sorted(nights)))


def released(lake: Lake, quarantined: Frame) -> pl.Series:
    """Of each of these rows of the quarantine, whether somebody has released it."""
    key = list(KEYS[TABLE])
    said = lake.read(RELEASED).select(*key, pl.lit(True).alias("released"))
    found = quarantined.select(key).join(said, key, "left", maintain_order="left")
    return found["released"].fill_null(False)


def release(lake: Lake, rows: Frame, *, at: datetime, by: str, reason: str) -> int:
    """Note in one commit that these rows of the quarantine, which stay there, stop no night; how many are new."""
    said = [pl.lit(at, dtype=TIMESTAMP).alias("at"), pl.lit(by).alias("by"), pl.lit(reason).alias("reason")]
    return lake.append_new(RELEASED, rows.select(*KEYS[TABLE], *said))


def summary(lake: Lake) -> dict[str, dict[str, int]]:
    """How many rows each reason holds back, by table, the most frequent reason first."""
    counted = (
        lake.read(TABLE)
        .group_by("table", "reason")
        .len()
        .sort("table", "len", "reason", descending=[False, True, False])
    )
    return {
        table: {row["reason"]: row["len"] for row in counted.filter(pl.col("table") == table).iter_rows(named=True)}
        for table in TABLES
    }
