"""Online Retail (UCI): a year of invoices of a UK web shop, with all the dirt that validation is there to find.

Nothing is dropped here: a line without a customer stays without a user, a negative quantity is a `return`, and what is
no product (postage, fees, tests) is marked as such in its item's attributes, so that validation can say why it goes.
"""

from __future__ import annotations

from datetime import datetime
from typing import cast

import polars as pl

from evensong.data import batch, lake, tabular, values
from evensong.data.batch import Batch
from evensong.errors import SourceError
from evensong.types import Frame

#: What each column may be called, in the first and the second edition of the data set.
COLUMNS = {
    "description": ("Description",),
    "quantity": ("Quantity",),
    "time": ("InvoiceDate",),
    "price": ("UnitPrice", "Price"),
    "customer": ("CustomerID", "Customer ID"),
    "country": ("Country",),
}
OPTIONAL = {"code": ("StockCode",), "invoice": ("InvoiceNo", "Invoice")}
#: Lines of an invoice that are no product; matched against the whole of the wording, in lower case.
NOT_PRODUCTS = (
    r"(dotcom )?postage|(next day )?carriage|manual|discount|samples?|test|this is a test product\.?|bank charges|"
    r"amazon( fee| adjustment)?|cruk commission|adjust bad debt|adjustment.*|packing charge|high resolution image|"
    r"dotcom( sales)?|ebay|.*\bgift voucher\b.*|sold as set.*|"
    r"\?.*|check(s|ed)?|damage[sd]?\W*|damages .*|found( .*)?|lost( .*)?|missing|"
    r"thrown away.*|mixed up|smashed|wet( .*)?|wrongly .*"
)
#: How a spreadsheet writes times as text, depending on whose it is: the published CSV has months first.
TIME_FORMATS = ("%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M", "%d.%m.%Y %H:%M", "%m/%d/%y %H:%M", "%d/%m/%y %H:%M")


def read(location: str, now: datetime) -> Batch:
    """The shop's lines as interactions, its products as items, its customers as users, as they are at `now`.

    An event's value is quantity × unit price, negative for a return. An item becomes known with its first sale, at that
    sale's price; a materially other price holds from the month after it was seen. An item's id is its stock code, or
    what is left of its description in lower case.

    Raises:
        SourceError: the file is missing, empty, or has other columns.
    """
    lines = pl.concat([_lines(uri) for uri in tabular.files(location)], how="vertical_relaxed")
    lines = batch.arrived(lines, now)
    if lines.is_empty():
        raise SourceError(f"{location}: expected invoice lines, found none; download the data set again")
    interactions = lines.select(
        "user_id",
        "item_id",
        "event_type",
        "event_timestamp",
        "session_id",
        "created_timestamp",
        value=pl.col("quantity") * pl.col("price"),
    )
    sold = lines.filter((pl.col("quantity") > 0) & (pl.col("price") > 0))
    about = ("product",)
    return Batch(
        interactions=lake.conform("interactions", interactions),
        items=batch.changed_items(sold, about),
        first_items=batch.first_items(sold, about),
        first_users=batch.first_users(lines, ("country",)),
        moment=cast(datetime | None, lines["created_timestamp"].max()),
    )


def fingerprints(location: str) -> dict[str, str]:
    """Each file with a mark that changes when the file does."""
    return tabular.fingerprints(location)


def _lines(uri: str) -> Frame:
    there = tabular.columns(uri)
    called = {wanted: next((n for n in names if n in there), names[0]) for wanted, names in COLUMNS.items()}
    called |= {wanted: name for wanted, names in OPTIONAL.items() for name in names if name in there}
    raw = tabular.read_file(uri, called)
    wording = raw["description"].cast(pl.String).str.strip_chars().str.replace_all(r"\s+", " ")
    wording = wording.set(wording == "", None)
    quantity = values.numbers(raw["quantity"], uri)
    rows = pl.DataFrame(
        [
            values.ids(raw["customer"]).alias("user_id"),
            wording.alias("title"),
            quantity.alias("quantity"),
            values.numbers(raw["price"], uri).alias("price"),
            values.times(raw["time"], uri, _time_format(raw["time"])).alias("event_timestamp"),
            raw["country"].cast(pl.String).alias("country"),
        ]
    )
    slug = pl.col("title").str.to_lowercase().str.replace_all(r"[^a-z0-9]+", "-").str.strip_chars("-")
    code = values.ids(raw["code"]).str.to_uppercase() if "code" in called else slug
    session = values.ids(raw["invoice"]) if "invoice" in called else pl.lit(None, pl.String)
    return rows.with_columns(
        item_id=code if isinstance(code, pl.Expr) else pl.Series(code),
        session_id=session,
        event_type=pl.when(pl.col("quantity") < 0).then(pl.lit("return")).otherwise(pl.lit("purchase")),
        product=~pl.col("title").str.to_lowercase().str.contains(f"^(?:{NOT_PRODUCTS})$").fill_null(True),
    ).with_columns(item_id=pl.when(pl.col("item_id") != "").then("item_id"))


def _time_format(times: pl.Series) -> str | None:
    """The first format that reads every time; None where they are ISO text, or no text at all."""
    if times.dtype != pl.String or not times.str.contains(r"^\d{1,2}[/.]\d{1,2}[/.]\d{2,4} ").any():
        return None
    readable = [f for f in TIME_FORMATS if times.str.to_datetime(f, strict=False).null_count() == times.null_count()]
    return readable[0] if readable else TIME_FORMATS[0]
