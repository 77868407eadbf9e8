"""Numbers as people write them: `1,200.50`, `€ 1.200,50`, `12 kg`, `4.5%`, `true`; and dates as days.

Each text is read by itself, so one row reads as it would among many.
"""

from __future__ import annotations

import polars as pl

_GROUP = r"[,'’ \x{00a0}\x{202f}]"
_BEFORE, _AFTER = r"[\p{Sc}\p{L} ]{0,4}?", r"[\p{L}\p{Sc}%‰°²³ ]{0,12}"
_PATTERN = {
    ".": rf"^({_BEFORE})([+-]?(?:\d{{1,3}}(?:{_GROUP}\d{{3}})+|\d+)(?:\.\d+)?)({_AFTER})$",
    ",": rf"^({_BEFORE})([+-]?(?:\d{{1,3}}(?:{_GROUP.replace(',', '.')}\d{{3}})+|\d+)(?:,\d+)?)({_AFTER})$",
}
_TRUTH = {"true": 1.0, "false": 0.0}


def numbers(texts: pl.Series, decimal: str = ".") -> pl.Series:
    """The number of each text, null where it is none.

    Args:
        decimal: what stands before the fraction, `.` or `,`; the other one groups thousands.
    """
    bare = texts.str.strip_chars()
    plain = bare.cast(pl.Float64, strict=False)
    if decimal == ",":
        plain = plain.set(bare.str.contains(".", literal=True).fill_null(False), None)
    written = bare.str.extract(_PATTERN[decimal], 2).str.replace_all(r"[^\d.,+-]", "")
    written = written.str.replace_all("," if decimal == "." else ".", "", literal=True)
    written = written.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
    truth = bare.str.to_lowercase().replace_strict(_TRUTH, default=None, return_dtype=pl.Float64)
    found: pl.Series = pl.select(pl.coalesce(plain, written, truth)).to_series()
    return found.alias(texts.name)


def units(texts: pl.Series, decimal: str = ".") -> list[str]:
    """What stands around the numbers, such as `€` or `kg`, each once, sorted."""
    bare = texts.drop_nulls().str.strip_chars()
    bare = bare.filter(bare.cast(pl.Float64, strict=False).is_null())
    parts = [bare.str.extract(_PATTERN[decimal], group).str.strip_chars() for group in (1, 3)]
    around = pl.select(pl.concat_str(parts, separator=" ")).to_series().str.strip_chars().drop_nulls()
    return sorted(set(around.to_list()) - {""})


def days(texts: pl.Series, written: str) -> pl.Series:
    """The days since 1970 of each date, null where it is none.

    Args:
        written: how dates are written, as `strptime` has it, such as `%d.%m.%Y`; or `iso`, with or without a time.
    """
    bare = texts.str.strip_chars()
    if written == "iso":
        bare, written = bare.str.slice(0, 10), "%Y-%m-%d"
    dates = bare.str.to_date(written, strict=False).cast(pl.Datetime("us"))
    if "%H" in written or "%I" in written:
        dates = bare.str.to_datetime(written, strict=False, time_unit="us")
    return (dates.dt.epoch("us") / 86_400e6).alias(texts.name)
