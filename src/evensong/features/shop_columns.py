"""Which columns the models read: the groups that come built in, and people's own file (`features.columns_path`)."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from evensong.features.columns import (
    CategoricalColumn,
    Column,
    ColumnSet,
    CrossColumn,
    ImageColumn,
    NumericColumn,
    RateColumn,
    SequenceColumn,
    TextColumn,
    VectorColumn,
    load_columns,
    parse,
    places_of,
)
from evensong.features.item_features import CONVERSIONS, ITEM_CONVERSION, ITEM_DETAILS, ITEM_STANDING
from evensong.features.transformations import ITEM_CONTENT, ITEM_POPULARITY, STAMPS, USER_ACTIVITY, USER_HISTORY
from evensong.features.user_features import COUNTED, HOURS, USER_DYNAMICS, USER_PROFILE, USER_SEQUENCE
from evensong.settings import FeatureSettings
from evensong.types import Value

#: Views that are computed only when a column reads them; the others always are.
OPTIONAL_VIEWS = {
    "user_profile": USER_PROFILE,
    "user_dynamics": USER_DYNAMICS,
    "user_sequence": USER_SEQUENCE,
    "item_details": ITEM_DETAILS,
    "item_standing": ITEM_STANDING,
    "item_conversion": ITEM_CONVERSION,
}
#: What columns call a feature by, where that is another name than the view's.
ALIASES = {
    "users": {"attributes": "user_attributes"},
    "items": {"attributes": "item_attributes", "image_uri": "item_image_uri"},
}


def _features(key: str, *schemas: dict[str, pl.DataType]) -> dict[str, pl.DataType]:
    return {n: kind for schema in schemas for n, kind in schema.items() if n not in STAMPS and n != key}


#: Every feature of the users and of the items that a column may read, by the view's name for it.
USER_FEATURES = _features("user_id", USER_HISTORY, USER_ACTIVITY, USER_PROFILE, USER_DYNAMICS, USER_SEQUENCE)
ITEM_FEATURES = _features("item_id", ITEM_POPULARITY, ITEM_CONTENT, ITEM_DETAILS, ITEM_STANDING, ITEM_CONVERSION)
#: Features that move with each event: of the catalogue's moment they would tell the item tower what it is to foresee.
MOVING_FEATURES = frozenset(_features("item_id", ITEM_POPULARITY, ITEM_CONVERSION))


class Declared(Value):
    """The columns of the models."""

    users: ColumnSet
    items: ColumnSet
    """Of the item tower and the ranker: what an item is."""
    moving: ColumnSet
    """Of the ranker alone: how an item does at the moment of the question."""
    built_in: frozenset[str]
    """Names of those that are left out, and said so, where the data has nothing to say."""

    @property
    def views(self) -> frozenset[str]:
        """The optional views that these columns read."""
        read = _read("users", self.users) | _read("items", self.items) | _read("items", self.moving)
        return frozenset(view for view, schema in OPTIONAL_VIEWS.items() if read & (schema.keys() - STAMPS.keys()))


def declared(settings: FeatureSettings) -> Declared:
    """The columns under these settings; one of the file replaces a built-in one of the same name.

    Raises:
        ConfigurationError: the file cannot be read, or its columns contradict each other or the built-in ones.
    """
    users, items = _built_in(settings)
    names = {column.name for column in (*users, *items)}
    where = "the built-in columns"
    if settings.columns_path is not None:
        own, where = load_columns(settings.columns_path), str(settings.columns_path)
        users, items = _joined(users, own.users), _joined(items, own.items)
        names -= {column.name for column in (*own.users.root, *own.items.root)}
    moving = [c for c in items if set(places_of(c)) & MOVING_FEATURES]
    still = [c for c in items if c not in moving]
    return Declared(
        users=parse(ColumnSet, users, where),
        items=parse(ColumnSet, still, where),
        moving=parse(ColumnSet, moving, where),
        built_in=frozenset(names),
    )


def active_views(settings: FeatureSettings) -> frozenset[str]:
    """The optional views that are computed and served under these settings; the others' tables are empty."""
    return declared(settings).views


def _built_in(settings: FeatureSettings) -> tuple[list[Column], list[Column]]:
    groups, users, items = set(settings.groups), list[Column](), list[Column]()
    if "profile" in groups:
        users += [CategoricalColumn(name=name) for name in ("age_bucket", "gender", "membership_level")]
    if "crosses" in groups:
        users += [CategoricalColumn(name=name) for name in ("age_bucket", "gender", "membership_level")]
        users += [
            CrossColumn(name="age_x_gender", columns=("age_bucket", "gender"), num_buckets=64),
            CrossColumn(
                name="age_x_gender_x_level", columns=("age_bucket", "gender", "membership_level"), num_buckets=256
            ),
        ]
    if "dynamics" in groups:
        counted = ["decayed_events", *(f"decayed_{kind}s" for kind in COUNTED)]
        users += [_logarithm(name) for name in [*counted, *(f"spend_{days}d" for days in (1, 7, 30))]]
        users.append(SequenceColumn(name="taste", source="taste_categories", length=settings.num_top_categories))
    if "hours" in groups:
        users.append(VectorColumn(name="hours", source="hour_shares", length=HOURS))
    if "sequence" in groups:
        length = settings.sequence_length
        users += [
            SequenceColumn(name="last_types", source="sequence_event_types", length=length),
            SequenceColumn(name="last_categories", source="sequence_categories", length=length),
            VectorColumn(name="last_gaps", source="sequence_gap_seconds", length=length, keep="last", normalise="log"),
        ]
    if "text" in groups:
        items.append(TextColumn(name="title_tfidf", source="title", dimension=32))
    if settings.text_encoder != "none":
        items.append(TextColumn(name="title_meaning", source="title", encoder=settings.text_encoder))
    if settings.image_encoder != "none":
        items.append(ImageColumn(name="picture", source="image_uri", encoder=settings.image_encoder))
    if "price" in groups:
        items.append(NumericColumn(name="price_rank", normalise="none", missing=0.5))
    if "conversion" in groups:
        items.append(_logarithm("item_decayed_events"))
        items += [
            RateColumn(
                name=f"{name}_rate",
                conversions=f"item_{name}s_30d",
                trials="item_views_30d",
                strength=settings.prior_strength,
            )
            for name in CONVERSIONS
        ]
    return list(dict.fromkeys(users)), items


def _logarithm(name: str) -> NumericColumn:
    return NumericColumn(name=name, normalise="log", missing=0.0, indicator=False)


def _joined(built_in: list[Column], own: ColumnSet) -> list[Column]:
    named = {column.name: column for column in built_in}
    return list((named | {column.name: column for column in own.root}).values())


def _read(table: str, columns: ColumnSet) -> set[str]:
    """The features that the columns read, by the views' names."""
    places: Iterable[str] = {place for column in columns.root for place in places_of(column)}
    known = USER_FEATURES if table == "users" else ITEM_FEATURES
    heads = {place if place in known else place.split(".")[0] for place in places}
    return {ALIASES[table].get(head, head) for head in heads}
