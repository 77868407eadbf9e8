"""The feature views: what is computed by evensong.features.transformations, by name, type and meaning."""

from datetime import timedelta

from entities import item, user
from feast import FeatureView, Field
from feast.types import Array, Float32, Float64, Int64, String
from sources import feature_table

#: No age limit: a user's history holds until the next event changes it.
FOREVER = timedelta(0)

user_history = FeatureView(
    name="user_history",
    entities=[user],
    ttl=FOREVER,
    source=feature_table("user_history"),
    owner="evensong",
    description="What a user wanted, at each moment at which that changed.",
    schema=[
        Field(name="user_id", dtype=String),
        Field(name="recent_item_ids", dtype=Array(String), description="Last positive events' items, oldest first."),
        Field(name="recent_event_types", dtype=Array(String), description="The types of those events."),
        Field(name="num_interactions", dtype=Int64, description="Positive events so far."),
        Field(name="last_interaction_seconds", dtype=Int64, description="Unix time of the latest positive event."),
        Field(name="top_categories", dtype=Array(String), description="Level-one categories, largest share first."),
        Field(name="top_category_shares", dtype=Array(Float32), description="Their shares of the positive events."),
    ],
)

user_activity = FeatureView(
    name="user_activity",
    entities=[user],
    ttl=FOREVER,
    source=feature_table("user_activity"),
    owner="evensong",
    description="How active a user was, at each event and at each midnight at which a window changed.",
    schema=[
        Field(name="user_id", dtype=String),
        Field(name="num_events_1d", dtype=Int64, description="Positive events in the last day."),
        Field(name="num_events_7d", dtype=Int64, description="Positive events in the last 7 days."),
        Field(name="num_events_30d", dtype=Int64, description="Positive events in the last 30 days."),
    ],
)

item_popularity = FeatureView(
    name="item_popularity",
    entities=[item],
    ttl=FOREVER,
    source=feature_table("item_popularity"),
    owner="evensong",
    description="How much an item is wanted, at each midnight at which that changed.",
    schema=[
        Field(name="item_id", dtype=String),
        Field(name="item_events_1d", dtype=Int64, description="Positive events in the last day."),
        Field(name="item_events_7d", dtype=Int64, description="Positive events in the last 7 days."),
        Field(name="item_events_30d", dtype=Int64, description="Positive events in the last 30 days."),
        Field(name="item_events_total", dtype=Int64, description="Positive events so far."),
        Field(name="item_users_30d", dtype=Int64, description="Different users of the last 30 days' events."),
    ],
)

item_content = FeatureView(
    name="item_content",
    entities=[item],
    ttl=FOREVER,
    source=feature_table("item_content"),
    owner="evensong",
    description="What the items table says of an item, at each moment at which that changed.",
    schema=[
        Field(name="item_id", dtype=String),
        Field(name="title", dtype=String, description="The item's title."),
        Field(name="category_path", dtype=String, description="Up to three levels, broad to narrow."),
        Field(name="price", dtype=Float64, description="In the shop's currency."),
        Field(name="arrival_seconds", dtype=Int64, description="Unix time of the item's first known row."),
    ],
)

user_seen = FeatureView(
    name="user_seen",
    entities=[user],
    ttl=FOREVER,
    source=feature_table("user_seen"),
    owner="evensong",
    description="Which items a user has met and bought, at each day end at which that changed.",
    schema=[
        Field(name="user_id", dtype=String),
        Field(name="seen_item_ids", dtype=Array(String), description="Items of every event, whatever its value."),
        Field(name="purchased_item_ids", dtype=Array(String), description="Items bought."),
    ],
)
