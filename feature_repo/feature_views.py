"""The feature views, as Feast declares them: what `evensong.features.views` says, by name, type and meaning."""

import polars as pl
from entities import item, user
from feast import FeatureView, Field
from feast.types import Array, Float32, Float64, Int64, String
from sources import SETTINGS, feature_table

from evensong.features.views import declared_views

TYPES = {
    pl.String(): String,
    pl.Int64(): Int64,
    pl.Float64(): Float64,
    pl.List(pl.String()): Array(String),
    pl.List(pl.Float32()): Array(Float32),
}
ENTITIES = {"user_id": user, "item_id": item}

VIEWS = {
    view.name: FeatureView(
        name=view.name,
        entities=[ENTITIES[view.entity]],
        ttl=view.ttl,
        source=feature_table(view.name),
        owner=view.owner,
        description=view.description,
        schema=[
            Field(name=view.entity, dtype=String),
            *(Field(name=f.name, dtype=TYPES[f.dtype], description=f.description) for f in view.features),
        ],
    )
    for view in declared_views(SETTINGS.features).values()
}
# Feast's command line takes what stands in a module under a name of its own.
globals().update(VIEWS)
