"""Puts our offline store under Feast's own universal tests, named by FULL_REPO_CONFIGS_MODULE in `make feast-suite`.

Imported inside a checkout of Feast, where `tests.universal` is Feast's, over three kinds of files.
"""

from __future__ import annotations

from feast.repo_config import FeastConfigBaseModel
from tests.universal.feature_repos.universal.data_sources.file import (
    DeltaFileSourceCreator,
    FileDataSourceCreator,
    FileParquetDatasetSourceCreator,
)

from evensong.features.offline_store import PolarsOfflineStoreConfig


def _ours(_: FileDataSourceCreator) -> FeastConfigBaseModel:
    return PolarsOfflineStoreConfig()


# the tests that ask for the store `file` by name take this class, whatever is listed below
FileDataSourceCreator.create_offline_store_config = _ours

AVAILABLE_OFFLINE_STORES = [
    ("local", FileDataSourceCreator),
    ("local", FileParquetDatasetSourceCreator),
    ("local", DeltaFileSourceCreator),
]
AVAILABLE_ONLINE_STORES = {"sqlite": ({"type": "sqlite"}, None)}
