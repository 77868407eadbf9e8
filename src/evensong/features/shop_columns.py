"""Which columns the models read: the groups that come built in, and people's own file (`features.columns_path`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import polars as pl

from evensong.errors import BundleError, ConfigurationError, SourceError
from evensong.features.column_values import number_at, refuse_unreadable
from evensong.features.columns import (
    CategoricalColumn,
    Column,
    ColumnSet,
    CrossColumn,
    ImageColumn,
    NumericColumn,
    PairCross,
    RateColumn,
    SequenceColumn,
    StatisticDeclaration,
    TextColumn,
    VectorColumn,
    heads_of,
    load_columns,
    nearest,
    parse,
    places_of,
)
from evensong.features.declarations import View
from evensong.features.encoders import refuse_slip
from evensong.features.item_features import CONVERSIONS
from evensong.features.pair_crosses import PairCrosses
from evensong.features.user_features import COUNTED, DAYS, HOURS
from evensong.features.views import declared_views, features_of
from evensong.settings import FeatureSettings
from evensong.types import Frame, Value

#: What columns call a feature by, where that is another name than the view's.
ALIASES = {
    "users": {"attributes": "user_attributes"},
    "items": {"attributes": "item_attributes", "image_uri": "item_image_uri"},
}


class Declared(Value):
    """The columns of the models."""

    users: ColumnSet
    items: ColumnSet
    """Of the item tower and the ranker: what an item is."""
    moving: ColumnSet
    """Of the ranker alone: how an item does at the moment of the question."""
    pairs: PairCrosses = PairCrosses()
    """Of the ranker alone: what a user is with what an item is."""
    built_in: frozenset[str]
    """Names of those that are left out, and said so, where the data has nothing to say."""


def declared(settings: FeatureSettings) -> Declared:
    """The columns under these settings; one of the file replaces a built-in one of the same name.

    Raises:
        ConfigurationError: the file cannot be read, or its columns contradict each other or the built-in ones.
    """
    users, items = _built_in(settings)
    crosses: tuple[PairCross, ...] = ()
    names = {column.name for column in (*users, *items)}
    where = "the built-in columns"
    if settings.columns_path is not None:
        own, where = load_columns(settings.columns_path), str(settings.columns_path)
        users, items = _joined(users, own.users), _joined(items, own.items)
        crosses = own.crosses
        names -= {column.name for column in (*own.users.root, *own.items.root)}
    views = list(declared_views(settings).values())
    of_moments = {f.name for view in views if view.entity == "item_id" and view.moving for f in view.features}
    moving = [c for c in items if set(places_of(c)) & of_moments]
    still = [c for c in items if c not in moving]
    parse(ColumnSet, items, where)  # what both give has one name each, for the ranker reads them side by side
    return Declared(
        users=parse(ColumnSet, users, where),
        items=parse(ColumnSet, still, where),
        moving=parse(ColumnSet, moving, where),
        pairs=_pairs(crosses, users, items, views, where),
        built_in=frozenset(names),
    )


def active_views(settings: FeatureSettings) -> frozenset[str]:
    """The optional views that are computed and served under these settings; the others' tables are empty."""
    found = declared(settings)
    read = {
        "user_id": read_features("users", found.users, found.pairs.users),
        "item_id": read_features("items", found.items, found.moving, found.pairs.items),
    }
    return frozenset(
        name
        for name, view in declared_views(settings).items()
        if view.optional and read[view.entity] & {feature.name for feature in view.features}
    )


def served_features(settings: FeatureSettings) -> dict[str, frozenset[str]]:
    """What a process of these settings asks the online store for, by table, by the views' names."""
    active = active_views(settings)
    views = [view for view in declared_views(settings).values() if not view.optional or view.name in active]
    return {"users": frozenset(features_of(views, "user_id")), "items": frozenset(features_of(views, "item_id"))}


def check_read(reads: Mapping[str, Collection[str]], settings: FeatureSettings) -> None:
    """Refuse a model that reads features which a process of these settings would not ask the store for.

    Args:
        reads: `ModelColumns.reads`.

    Raises:
        BundleError: the night had a columns file, or another feature setting, that the process has not.
    """
    served = served_features(settings)
    if unread := sorted(name for table, names in reads.items() for name in set(names) - served[table]):
        raise BundleError(
            f"it reads {', '.join(unread)}, which nothing reads under this process's settings; start it with those of "
            "the night, EVENSONG_FEATURES__COLUMNS_PATH above all"
        )


def check_sources(settings: FeatureSettings, users: Frame, items: Frame) -> None:
    """Refuse a column or a statistic that reads what is no feature, an attribute that no row has, or values of another
    kind, long before it is computed.

    Args:
        users: the rows of the table.
        items: the same.

    Raises:
        SourceError: what fitting or computing each of them would say, a line each.
    """
    found, problems = declared(settings), list[str]()
    of_items = (*found.items.root, *found.moving.root, *found.pairs.items.root)
    for table, rows, columns in (
        ("users", users, (*found.users.root, *found.pairs.users.root)),
        ("items", items, of_items),
    ):
        kinds = _kinds(declared_views(settings).values(), table)
        there = {n: pl.col(n) if rows.schema.get(n) == kind else pl.lit(None, kind) for n, kind in kinds.items()}
        frame = rows.select(**there | {"attributes": pl.col("attributes")})
        problems += _problems(table, partial(refuse_unreadable, frame), columns)
        encoders = [c.encoder for c in columns if isinstance(c, TextColumn)]
        problems += _problems(f"{table}: encoder", refuse_slip, encoders)
    statistics = load_columns(settings.columns_path).statistics
    problems += _problems("statistics", lambda one: _read_statistic(one, users, items), statistics)
    if problems:
        raise SourceError("\n".join(f"{settings.columns_path}: {problem}" for problem in problems))


def _problems(where: str, read: Callable[[Any], object], declared: Iterable[Any]) -> list[str]:
    """What is wrong with each of them, once."""
    found = []
    for one in declared:
        try:
            read(one)
        except (SourceError, ConfigurationError) as error:
            found.append(f"{where}: {error}")
    return list(dict.fromkeys(found))


def _read_statistic(statistic: StatisticDeclaration, users: Frame, items: Frame) -> None:
    table, _, inside = (statistic.column or "").partition(".")
    if inside:  # else it is the event's own
        number_at({"user": users, "item": items}[table], statistic.name, inside)


def _kinds(views: Iterable[View], table: str) -> dict[str, pl.DataType]:
    """What columns of the table may read, by the names that people write: the key, and the features."""
    named = {feature: alias for alias, feature in ALIASES[table].items()}
    key: Literal["user_id", "item_id"] = "user_id" if table == "users" else "item_id"
    known = {key: pl.String(), **features_of(views, key)}
    return {named.get(name, name): kind for name, kind in known.items()}


def read_features(table: str, *columns: ColumnSet) -> set[str]:
    """The features that the columns read, by the views' names."""
    heads = {head for chosen in columns for column in chosen.root for head in heads_of(column)}
    return {ALIASES[table].get(head, head) for head in heads}


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
        users += [_logarithm(name) for name in [*counted, *(f"spend_{days}d" for days in DAYS)]]
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


def _pairs(
    crosses: tuple[PairCross, ...], users: list[Column], items: list[Column], views: Iterable[View], where: str
) -> PairCrosses:
    """The crosses with their columns: the declared categorical one of that name, or one that reads the feature."""
    parts: dict[str, list[Column]] = {"users": [], "items": []}
    named: dict[str, str] = {}
    for table, columns in (("users", users), ("items", items)):
        declared = {column.name: column for column in columns}
        features = _kinds(views, table)
        names = [part.partition(".") for cross in crosses for part in cross.columns]
        for name in dict.fromkeys(name for of, _, name in names if of == table):
            column = declared.get(name)
            if column is not None and not isinstance(column, CategoricalColumn):
                raise ConfigurationError(
                    f"{where}: crosses: {table}.{name} is {column.kind}, expected a categorical column; "
                    "see docs/guides/columns.md"
                )
            column = column or CategoricalColumn(name=name.replace(".", "_"), source=name)
            if not heads_of(column) <= set(features):
                mine = {one.name for one in columns if isinstance(one, CategoricalColumn)}
                raise ConfigurationError(
                    f"{where}: crosses: {table}.{name} is neither a categorical column nor a feature"
                    f"{nearest(name, mine | set(features))}; see docs/guides/columns.md"
                )
            parts[table].append(column)
            named[f"{table}.{name}"] = f"{table}.{column.name}"
    crosses = tuple(
        cross.model_copy(update={"columns": tuple(named[part] for part in cross.columns)}) for cross in crosses
    )
    return PairCrosses(crosses=crosses, users=ColumnSet(tuple(parts["users"])), items=ColumnSet(tuple(parts["items"])))


def _logarithm(name: str) -> NumericColumn:
    return NumericColumn(name=name, normalise="log", missing=0.0, indicator=False)


def _joined(built_in: list[Column], own: ColumnSet) -> list[Column]:
    named = {column.name: column for column in built_in}
    return list((named | {column.name: column for column in own.root}).values())
