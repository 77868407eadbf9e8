"""The feature views, each declared once: its function, what that is handed, its features, its settings, its service.

Tables, Feast's declarations (`feature_repo/`), the dictionary, the online reads and the nightly computation read these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import polars as pl

from evensong.errors import ConfigurationError
from evensong.features import item_features, own_statistics, user_features
from evensong.features import transformations as t
from evensong.features.columns import StatisticDeclaration, load_columns, nearest
from evensong.features.declarations import RECOMMENDER, SERVING_FILTERS, Feature, Input, View
from evensong.settings import FeatureSettings, Settings

_POSITIVE = {"types": "split.positive_event_types", "min_value": "split.min_value"}
INTERACTIONS = Input("interactions", ("interactions",))
POSITIVES = Input("positives", ("interactions",), t.positive_events, _POSITIVE)
CATEGORISED = Input("categorised", ("interactions", "items"), t.categorised_events, _POSITIVE)
ITEMS = Input("items", ("items",))
USERS = Input("users", ("users",))

BUILT_IN = (
    View(
        "user_history",
        "user_id",
        CATEGORISED,
        t.user_history,
        t.HISTORY,
        "What a user wanted, at each moment at which that changed.",
        settings={
            "history_length": "features.history_length",
            "num_top_categories": "features.num_top_categories",
        },
    ),
    View(
        "user_activity",
        "user_id",
        POSITIVES,
        t.user_activity,
        t.ACTIVITY,
        "How active a user was, at each event and at each midnight at which a window changed.",
    ),
    View(
        "user_profile",
        "user_id",
        USERS,
        user_features.user_profile,
        user_features.PROFILE,
        "Who a user is, at each moment at which the users table said something new.",
        optional=True,
    ),
    View(
        "user_dynamics",
        "user_id",
        CATEGORISED,
        user_features.user_dynamics,
        user_features.DYNAMICS,
        "What a user did lately, at each event, each end of a window and each half-life.",
        settings={
            "half_life_days": "features.half_life_days",
            "num_top_categories": "features.num_top_categories",
        },
        optional=True,
    ),
    View(
        "user_sequence",
        "user_id",
        CATEGORISED,
        user_features.user_sequence,
        user_features.SEQUENCE,
        "A user's last steps in order, at each moment at which one was added.",
        settings={"sequence_length": "features.sequence_length"},
        optional=True,
    ),
    View(
        "item_popularity",
        "item_id",
        POSITIVES,
        t.item_popularity,
        t.POPULARITY,
        "How much an item is wanted, at each midnight at which that changed.",
        moving=True,
    ),
    View(
        "item_content",
        "item_id",
        ITEMS,
        t.item_content,
        t.CONTENT,
        "What the items table says of an item, at each moment at which that changed.",
    ),
    View(
        "item_details",
        "item_id",
        ITEMS,
        item_features.item_details,
        item_features.DETAILS,
        "The rest of what the items table says, at each moment at which that changed.",
        optional=True,
    ),
    View(
        "item_standing",
        "item_id",
        ITEMS,
        item_features.item_standing,
        item_features.STANDING,
        "Where an item's price stands, at each midnight at which that changed.",
        optional=True,
        needs_all=True,
    ),
    View(
        "item_conversion",
        "item_id",
        POSITIVES,
        item_features.item_conversion,
        item_features.CONVERSION,
        "What an item leads to, at each midnight at which that changed.",
        settings={"half_life_days": "features.half_life_days"},
        optional=True,
        moving=True,
    ),
    View(
        "user_seen",
        "user_id",
        INTERACTIONS,
        t.user_seen,
        t.SEEN,
        "Which items a user has met and bought, at each day end at which that changed.",
        settings={"positive_types": "split.positive_event_types", "seen_length": "features.seen_length"},
        service=SERVING_FILTERS,
    ),
)


def declared_views(settings: FeatureSettings) -> dict[str, View]:
    """Every view under these settings, by name: the built-in ones, then those of people's own statistics.

    Raises:
        ConfigurationError: the columns file cannot be read, or a statistic has the name of another feature.
    """
    own = load_columns(settings.columns_path).statistics
    taken = {feature.name: view.name for view in BUILT_IN for feature in view.features}
    for statistic in own:
        if statistic.name in taken:
            raise ConfigurationError(
                f"{settings.columns_path}: statistics: {statistic.name} is a feature of {taken[statistic.name]} "
                "already; choose another name"
            )
    return {view.name: view for view in (*BUILT_IN, *_of_statistics(own))}


def _of_statistics(own: Sequence[StatisticDeclaration]) -> Iterator[View]:
    """A view of each entity that has statistics."""
    functions = {"user": own_statistics.user_statistics, "item": own_statistics.item_statistics}
    for entity, function in functions.items():
        mine = tuple(statistic for statistic in own if statistic.entity == entity)
        if mine:
            features = [
                Feature(one.name, pl.Float64(), _said(one), window=one.window, declared=one.model_dump_json())
                for one in mine
            ]
            of_events = Input(
                f"amounts of {entity}s",
                ("interactions", "items", "users"),
                own_statistics.events_with_amounts,
                _POSITIVE,
                {"statistics": mine},
            )
            yield View(
                f"{entity}_statistics",
                "user_id" if entity == "user" else "item_id",
                of_events,
                function,
                tuple(features),
                f"The statistics of {entity}s' events that the columns file declares.",
                constants={"statistics": mine},
                owner="you",
                moving=entity == "item",
            )


def _said(statistic: StatisticDeclaration) -> str:
    """What a statistic says, for people."""
    events = f"{', '.join(statistic.event_types)} events" if statistic.event_types else "positive events"
    if statistic.column is None:
        return f"Number of {events}."
    said = {"sum": "Sum", "mean": "Mean", "count": "Number"}[statistic.computes]
    return f"{said} of {statistic.column} over {events}."


def check_event_types(settings: Settings) -> None:
    """Refuse a statistic of events that cannot occur.

    Raises:
        ConfigurationError: no event may be of the type that it names.
    """
    path = settings.features.columns_path
    known = {*settings.validation.event_types, *settings.split.positive_event_types}
    problems = [
        f"{path}: statistics: {statistic.name}: events of type {wrong} are not let through (types of your own "
        f"stand in EVENSONG_VALIDATION__EVENT_TYPES){nearest(wrong, known)}"
        for statistic in load_columns(path).statistics
        for wrong in sorted(set(statistic.event_types or ()) - known)
    ]
    if problems:
        raise ConfigurationError("\n".join(problems))


def schemas(settings: FeatureSettings) -> dict[str, dict[str, pl.DataType]]:
    """The columns of each view's table, by the view's name."""
    return {name: view.schema for name, view in declared_views(settings).items()}


def entity_of(view: str) -> str:
    """The join key of a view."""
    return "user_id" if view.startswith("user_") else "item_id"


def features_of(
    views: Iterable[View], entity: Literal["user_id", "item_id"], service: str = RECOMMENDER
) -> dict[str, pl.DataType]:
    """The features of an entity that a service hands over, by name, in the order of the views."""
    return {
        feature.name: feature.dtype
        for view in views
        if view.entity == entity and view.service == service
        for feature in view.features
    }


#: What every shop's models may read, whatever the settings; people's own statistics come on top.
USER_FEATURES = features_of(BUILT_IN, "user_id")
ITEM_FEATURES = features_of(BUILT_IN, "item_id")
