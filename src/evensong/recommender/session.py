"""What a caller knows of this moment, put behind what the feature store knows of the user."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from evensong.types import Frame


def continued(users: Frame, recent_item_ids: Sequence[str]) -> Frame:
    """One user's features, the history continued by what the user saw in this session."""
    if not recent_item_ids:
        return users
    items = users["recent_item_ids"].to_list()[0] or []
    types = users["recent_event_types"].to_list()[0] or []
    return users.with_columns(
        pl.Series("recent_item_ids", [[*items, *recent_item_ids]], dtype=pl.List(pl.String)),
        pl.Series("recent_event_types", [[*types, *["view"] * len(recent_item_ids)]], dtype=pl.List(pl.String)),
    )
