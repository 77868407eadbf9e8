"""The feature services: what training and serving ask for, by one name."""

from feast import FeatureService
from feature_views import (
    item_content,
    item_conversion,
    item_details,
    item_popularity,
    item_standing,
    user_activity,
    user_dynamics,
    user_history,
    user_profile,
    user_seen,
    user_sequence,
)

recommender_v1 = FeatureService(
    name="recommender_v1",
    features=[
        user_history,
        user_activity,
        user_profile,
        user_dynamics,
        user_sequence,
        item_popularity,
        item_content,
        item_details,
        item_standing,
        item_conversion,
    ],
    owner="evensong",
    description="What the retriever and the ranker read.",
)

serving_filters_v1 = FeatureService(
    name="serving_filters_v1",
    features=[user_seen],
    owner="evensong",
    description="What the filters hide from a user.",
)
