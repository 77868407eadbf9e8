"""The feature views, each declared once: its function, what that is handed, its features, its settings, its service.

Tables, Feast's declarations (`feature_repo/`), the dictionary, the online reads and the nightly computation read these.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import polars as pl

from evensong.features import item_features, user_features
from evensong.features import transformations as t
from evensong.features.declarations import RECOMMENDER, SERVING_FILTERS, Input, View
from evensong.settings import FeatureSettings

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
    """Every view under these settings, by name."""
    return {view.name: view for view in BUILT_IN}


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
