"""Features at any moment of the past, for training: Feast's point-in-time join, rows in = rows out."""

from __future__ import annotations

from evensong.features.store import open_store
from evensong.settings import Settings
from evensong.types import Frame


class FeatureReader:
    """Joins the features of a feature service to rows of entities and moments."""

    def __init__(self, settings: Settings) -> None:
        self._store = open_store(settings)

    def join(self, entities: Frame, service: str) -> Frame:
        """The entity rows with the features known at each row's moment.

        Args:
            entities: `event_timestamp` and the join keys of the service's views (`user_id`, `item_id`); all other
            columns
                are kept.
            service: the feature service's name.

        Returns:
            The same rows in the same order, with the service's features under their bare names; null where none was
            known.

        Raises:
            ValueError: a join key is missing, or a column has a feature's name.
        """
        job = self._store.get_historical_features(
            entity_df=entities, features=self._store.get_feature_service(service), filter_by_created_timestamp=True
        )
        joined: Frame = job.to_polars()
        if len(joined) != len(entities):
            raise AssertionError(f"{service}: {len(entities)} rows went into the join, {len(joined)} came out")
        return joined

    def features_of(self, service: str, entity: str) -> list[str]:
        """The service's features that describe one entity, by its join key, in the declared order."""
        names = []
        for projection in self._store.get_feature_service(service).feature_view_projections:
            view = self._store.get_feature_view(projection.name)
            if view.join_keys == [entity]:
                names += [feature.name for feature in projection.features]
        return names
