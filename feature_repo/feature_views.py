"""The feature views: what is computed in evensong.features, by name, type and meaning."""

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

user_profile = FeatureView(
    name="user_profile",
    entities=[user],
    ttl=FOREVER,
    source=feature_table("user_profile"),
    owner="evensong",
    description="Who a user is, at each moment at which the users table said something new.",
    schema=[
        Field(name="user_id", dtype=String),
        Field(
            name="age_bucket",
            dtype=String,
            description="From the users table: attributes.age, cut at 18, 25, 35 and 50.",
        ),
        Field(name="gender", dtype=String, description="From the users table: attributes.gender."),
        Field(name="membership_level", dtype=String, description="From the users table: attributes.membership_level."),
        Field(
            name="user_attributes", dtype=String, description="The row's JSON as it stands, for people's own columns."
        ),
    ],
)

user_dynamics = FeatureView(
    name="user_dynamics",
    entities=[user],
    ttl=FOREVER,
    source=feature_table("user_dynamics"),
    owner="evensong",
    description="What a user did lately, at each event, each end of a window and each half-life.",
    schema=[
        Field(name="user_id", dtype=String),
        Field(name="decayed_events", dtype=Float64, description="Positive events, decayed."),
        Field(name="decayed_views", dtype=Float64, description="Its view events."),
        Field(name="decayed_clicks", dtype=Float64, description="Its click events."),
        Field(name="decayed_carts", dtype=Float64, description="Its cart events."),
        Field(name="decayed_purchases", dtype=Float64, description="Its purchase events."),
        Field(name="spend_1d", dtype=Float64, description="Value of purchases in the last day."),
        Field(name="spend_7d", dtype=Float64, description="Value of purchases in the last 7 days."),
        Field(name="spend_30d", dtype=Float64, description="Value of purchases in the last 30 days."),
        Field(
            name="taste_categories",
            dtype=Array(String),
            description="Level-one categories of the decayed events, largest first.",
        ),
        Field(name="taste_shares", dtype=Array(Float32), description="Their shares of the decayed events."),
        Field(
            name="hour_shares",
            dtype=Array(Float32),
            description="Shares of the decayed events by hour of day (UTC), 24 numbers.",
        ),
    ],
)

user_sequence = FeatureView(
    name="user_sequence",
    entities=[user],
    ttl=FOREVER,
    source=feature_table("user_sequence"),
    owner="evensong",
    description="A user's last steps in order, at each moment at which one was added.",
    schema=[
        Field(name="user_id", dtype=String),
        Field(name="sequence_item_ids", dtype=Array(String), description="Items, oldest first."),
        Field(name="sequence_event_types", dtype=Array(String), description="Types of the events."),
        Field(
            name="sequence_categories",
            dtype=Array(String),
            description="Level-one categories of the items at that moment.",
        ),
        Field(name="sequence_gap_seconds", dtype=Array(Float32), description="Seconds since the event before."),
    ],
)

item_details = FeatureView(
    name="item_details",
    entities=[item],
    ttl=FOREVER,
    source=feature_table("item_details"),
    owner="evensong",
    description="The rest of what the items table says, at each moment at which that changed.",
    schema=[
        Field(name="item_id", dtype=String),
        Field(
            name="item_attributes", dtype=String, description="The row's JSON as it stands, for people's own columns."
        ),
        Field(name="item_image_uri", dtype=String, description="Where its picture is."),
    ],
)

item_standing = FeatureView(
    name="item_standing",
    entities=[item],
    ttl=FOREVER,
    source=feature_table("item_standing"),
    owner="evensong",
    description="Where an item's price stands, at each midnight at which that changed.",
    schema=[
        Field(name="item_id", dtype=String),
        Field(
            name="price_rank", dtype=Float64, description="Share of cheaper items in its level-one category, 0 to 1."
        ),
    ],
)

item_conversion = FeatureView(
    name="item_conversion",
    entities=[item],
    ttl=FOREVER,
    source=feature_table("item_conversion"),
    owner="evensong",
    description="What an item leads to, at each midnight at which that changed.",
    schema=[
        Field(name="item_id", dtype=String),
        Field(name="item_views_1d", dtype=Int64, description="Views and clicks in the last day."),
        Field(name="item_views_7d", dtype=Int64, description="Views and clicks in the last 7 days."),
        Field(name="item_views_30d", dtype=Int64, description="Views and clicks in the last 30 days."),
        Field(name="item_carts_1d", dtype=Int64, description="Times put into the cart in the last day."),
        Field(name="item_carts_7d", dtype=Int64, description="Times put into the cart in the last 7 days."),
        Field(name="item_carts_30d", dtype=Int64, description="Times put into the cart in the last 30 days."),
        Field(name="item_purchases_1d", dtype=Int64, description="Times bought in the last day."),
        Field(name="item_purchases_7d", dtype=Int64, description="Times bought in the last 7 days."),
        Field(name="item_purchases_30d", dtype=Int64, description="Times bought in the last 30 days."),
        Field(name="item_decayed_events", dtype=Float64, description="Positive events, decayed."),
    ],
)
