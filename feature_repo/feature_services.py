"""The feature services: what training and serving ask for, by one name."""

from feast import FeatureService
from feature_views import item_content, item_popularity, user_activity, user_history, user_seen

recommender_v1 = FeatureService(
    name="recommender_v1",
    features=[user_history, user_activity, item_popularity, item_content],
    owner="evensong",
    description="What the retriever and the ranker read.",
)

serving_filters_v1 = FeatureService(
    name="serving_filters_v1",
    features=[user_seen],
    owner="evensong",
    description="What the filters hide from a user.",
)
