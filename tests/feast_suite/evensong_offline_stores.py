"""Puts our offline store under Feast's own universal tests, named by FULL_REPO_CONFIGS_MODULE in `make feast-suite`.

Imported inside a checkout of Feast, where `tests.universal` is Feast's, over three kinds of files.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FileSource
from feast.data_format import ParquetFormat
from feast.repo_config import FeastConfigBaseModel
from tests.universal.feature_repos.universal.data_sources.file import (
    DeltaFileSourceCreator,
    FileDataSourceCreator,
)

from evensong.features.offline_store import PolarsOfflineStoreConfig


def _ours(_: FileDataSourceCreator) -> FeastConfigBaseModel:
    return PolarsOfflineStoreConfig()


# the tests that ask for the store `file` by name take this class, whatever is listed below
FileDataSourceCreator.create_offline_store_config = _ours


class ParquetFolderSourceCreator(FileDataSourceCreator):
    """A folder of two files; Feast's own class for folders removes them before a test can read them."""

    def create_data_source(
        self,
        df: Any,
        destination_name: str,
        created_timestamp_column: str | None = "created_ts",
        field_mapping: dict[str, str] | None = None,
        timestamp_field: str | None = "ts",
    ) -> FileSource:
        folder = tempfile.mkdtemp(prefix=self.get_prefixed_table_name(destination_name))
        self.dirs.append(folder)
        rows = pa.Table.from_pandas(df)  # before it is cut, so that both files have the same types
        half = len(rows) // 2
        pq.write_table(rows.slice(0, half), Path(folder, "first.parquet"))
        pq.write_table(rows.slice(half), Path(folder, "second.parquet"))
        return FileSource(
            file_format=ParquetFormat(),
            path=folder,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            field_mapping=field_mapping or {"ts_1": "ts"},
        )


AVAILABLE_OFFLINE_STORES = [
    ("local", FileDataSourceCreator),
    ("local", ParquetFolderSourceCreator),
    ("local", DeltaFileSourceCreator),
]
AVAILABLE_ONLINE_STORES = {"sqlite": ({"type": "sqlite"}, None)}
