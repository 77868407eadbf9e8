"""Which columns of somebody's data mean what: the mapping of `evensong import events`."""

from __future__ import annotations

import difflib
import zoneinfo
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from evensong.data import values
from evensong.data.tabular import TextFormat
from evensong.errors import SourceError
from evensong.types import Value


class EventMapping(Value):
    """Column names of a file or SQL table of events, and where its items and users are described, if anywhere.

    The item columns (`title`, `category`, `price`, `image`, `item_attributes`) are those of `items` when that is given,
    and else of the events themselves; `user_attributes` likewise.
    """

    user: str = Field(description="Column of the user's id.")
    item: str = Field(description="Column of the item's id.")
    time: str = Field(description="Column of the event's time.")
    event_type: str = Field("view", description="Column of the event's type, or one type for all events.")
    value: str | None = Field(None, description="Column of a rating, a price paid, seconds.")
    session: str | None = Field(None, description="Column of the session's id.")
    request: str | None = Field(None, description="Column of the id of the request that showed the item.")
    position: str | None = Field(None, description="Column of the place in the slate, from 0.")
    propensity: str | None = Field(None, description="Column of the logging policy's probability.")
    created: str | None = Field(None, description="Column of the moment at which the row became known; else its time.")
    time_format: str | None = Field(None, description="How times are written, such as %d.%m.%Y %H:%M, if not ISO.")
    time_zone: str | None = Field(
        None, description="Zone of times that name none, such as Europe/Berlin; else they are UTC."
    )
    separator: str | None = Field(None, description="What separates the columns of a text file, if it is not plain.")
    encoding: str | None = Field(
        None, description="How a text file is encoded, such as cp1251; else UTF-8 or Windows-1252, by its content."
    )
    header: bool = Field(True, description="The first line names the columns; without it they are called 1, 2, 3 …")
    decimal: Literal[".", ","] | None = Field(
        None, description="The decimal mark, '.' or ',', where '1,234' could mean two things."
    )
    table: str | None = Field(None, description="The table, for an SQL source.")
    guests: bool = Field(False, description="Rows without a user are usual: quarantined, not held against the source.")
    keep_order: bool = Field(
        False, description="A user's events of one moment happened in their file's order, and are all different ones."
    )

    title: str | None = Field(None, description="Column of the item's title.")
    category: tuple[str, ...] = Field(
        (), max_length=3, description="Columns of the item's category, broad to narrow, once for each."
    )
    price: str | None = Field(None, description="Column of the item's price.")
    image: str | None = Field(None, description="Column of the item's image URI.")
    item_attributes: tuple[str, ...] = Field((), description="Other columns to keep about the item, once for each.")
    user_attributes: tuple[str, ...] = Field((), description="Columns to keep about the user, once for each.")

    items: str | None = Field(None, description="Where the items are described: a file, a folder or an SQL URL.")
    items_id: str | None = Field(
        None, description="Column of the item's id there; else the same name as in the events."
    )
    items_time: str | None = Field(
        None, description="Column of the moment from which the row holds; else the first event."
    )
    items_table: str | None = Field(None, description="The table of items, for an SQL source.")
    users: str | None = Field(None, description="Where the users are described.")
    users_id: str | None = Field(
        None, description="Column of the user's id there; else the same name as in the events."
    )
    users_time: str | None = Field(
        None, description="Column of the moment from which the row holds; else the first event."
    )
    users_table: str | None = Field(None, description="The table of users, for an SQL source.")

    @field_validator("category", "item_attributes", "user_attributes", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("separator")
    @classmethod
    def _as_typed(cls, value: str | None) -> str | None:
        return {"\\t": "\t", "tab": "\t"}.get(value, value) if value else value

    @field_validator("time_zone")
    @classmethod
    def _a_zone(cls, value: str | None) -> str | None:
        if value is not None and not values.is_time_zone(value):
            near = difflib.get_close_matches(value, zoneinfo.available_timezones(), 1, 0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"no time zone {value!r}; expected a name such as Europe/Berlin{hint}")
        return value

    @property
    def text(self) -> TextFormat:
        """How its text files are written."""
        return TextFormat(self.separator, self.encoding, self.header)


def read_mapping(**columns: Any) -> EventMapping:
    """A mapping from loose values, such as a command line's; what is None counts as not given.

    Raises:
        SourceError: a key that no mapping has, or a needed one is missing.
    """
    try:
        return EventMapping(**{key: value for key, value in columns.items() if value not in (None, (), [])})
    except ValidationError as error:
        problems = []
        for found in error.errors():
            name, text = str(found["loc"][0]), found["msg"].removeprefix("Value error, ")
            if found["type"] == "extra_forbidden":
                text = f"no such column of a mapping; it may have {', '.join(EventMapping.model_fields)}"
            problems.append(f"--{name.replace('_', '-')}: {text[:1].lower()}{text[1:]}")
        raise SourceError("; ".join(problems)) from error
