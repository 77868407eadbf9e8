"""Features at any moment of the past, for training: Feast's point-in-time join, rows in = rows out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evensong.features.store import open_store
from evensong.settings import Settings
from evensong.types import Frame

if TYPE_CHECKING:
    from feast import FeatureView


class FeatureReader:
    """Joins the features of a feature service to rows of entities and moments."""

    def __init__(self, settings: Settings) -> None:
        self._store = open_store(settings)

    def join(self, entities: Frame, service: str, *, of: str | None = None) -> Frame:
        """The entity rows with the features known at each row's moment.

        Args:
            entities: `event_timestamp` and the join keys of the service's views (`user_id`, `item_id`); all other
            columns
                are kept.
            service: the feature service's name.
            of: only the views of this join key, such as `item_id`; the others' keys may then be missing.

        Returns:
            The same rows in the same order, with the service's features under their bare names; null where none was
            known.

        Raises:
            ValueError: a join key is missing, or a column has a feature's name.
        """
        features = self._store.get_feature_service(service)
        if of is not None:
            features = [f"{view.name}:{name}" for view, names in self._views(service, of) for name in names]
        job = self._store.get_historical_features(
            entity_df=entities, features=features, filter_by_created_timestamp=True
        )
        joined: Frame = job.to_polars()
        if len(joined) != len(entities):
            raise AssertionError(f"{service}: {len(entities)} rows went into the join, {len(joined)} came out")
        return joined

    def features_of(self, service: str, entity: str) -> list[str]:
        """The service's features that describe one entity, by its join key, in the declared order."""
        return [name for _, names in self._views(service, entity) for name in names]

    def _views(self, service: str, entity: str) -> list[tuple[FeatureView, list[str]]]:
        found = []
        for projection in self._store.get_feature_service(service).feature_view_projections:
            view = self._store.get_feature_view(projection.name)
            if view.join_keys == [entity]:
                found.append((view, [feature.name for feature in projection.features]))
        return found
