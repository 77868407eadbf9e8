"""Where the feature tables are: Delta tables in the lake that the settings name, one a feature view."""

from feast import FileSource
from feast.data_format import DeltaFormat

from evensong.features.store import declaring, feature_table_uri

SETTINGS = declaring()


def feature_table(view: str) -> FileSource:
    """The Delta table of one view; a row became known at the moment that it is stamped with."""
    return FileSource(
        name=view,
        path=feature_table_uri(SETTINGS, view),
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )
