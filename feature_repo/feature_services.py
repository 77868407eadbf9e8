"""The feature services: what training and serving ask for, by one name."""

from feast import FeatureService
from feature_views import VIEWS
from sources import SETTINGS

from evensong.features.declarations import SERVICES
from evensong.features.views import declared_views

globals().update(
    {
        name: FeatureService(
            name=name,
            features=[VIEWS[v.name] for v in declared_views(SETTINGS.features).values() if v.service == name],
            owner="evensong",
            description=description,
        )
        for name, description in SERVICES.items()
    }
)
