"""Our bytes are Feast's bytes, value by value, and come back as they went."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from feast import ValueType
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from evensong.features import encoding
from evensong.features.encoding import decode, encode, entity_keys, text_keys, timestamps

texts = st.text(max_size=200)
SCALARS: list[tuple[pl.DataType, ValueType, st.SearchStrategy[Any]]] = [
    (pl.String(), ValueType.STRING, texts),
    (pl.Int64(), ValueType.INT64, st.integers(-(2**63), 2**63 - 1)),
    (pl.Int32(), ValueType.INT32, st.integers(-(2**31), 2**31 - 1)),
    (pl.Float64(), ValueType.DOUBLE, st.floats()),
    (pl.Float32(), ValueType.FLOAT, st.floats(width=32)),
    (pl.Boolean(), ValueType.BOOL, st.booleans()),
    (pl.Binary(), ValueType.BYTES, st.binary(min_size=1, max_size=300)),
]
LISTS = [
    (pl.List(dtype), ValueType[f"{kind.name}_LIST"], st.lists(values, max_size=40)) for dtype, kind, values in SCALARS
]


@pytest.mark.parametrize(("dtype", "kind", "values"), SCALARS + LISTS, ids=lambda value: str(value)[:20])
def test_bytes_are_those_of_feast_and_come_back(
    dtype: pl.DataType, kind: ValueType, values: st.SearchStrategy[Any]
) -> None:
    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.none() | values, max_size=12))
    def check(rows: list[Any]) -> None:
        encoded = encode(pl.Series("x", rows, dtype=dtype))
        assert encoded.to_pylist() == [_feast(row, kind) for row in rows]
        for few in (0, 8):
            with mock.patch.object(encoding, "FEW", few):
                back = decode(encoded, dtype)
            assert back.dtype == dtype
            assert _comparable(back.to_list()) == _comparable([_as_feast_reads(row) for row in rows])

    check()


def test_a_column_of_nothing_but_nulls() -> None:
    for dtype in (pl.String(), pl.Int64(), pl.List(pl.String()), pl.List(pl.Float32())):
        encoded = encode(pl.Series("x", [None, None], dtype=dtype))
        assert encoded.to_pylist() == [b"", b""]
        assert decode(encoded, dtype).to_list() == [None, None]


def test_lists_long_enough_for_two_byte_lengths() -> None:
    rows = [["x" * 130, "", "y" * 20_000], [], ["é"] * 5000]
    encoded = encode(pl.Series("x", rows))
    assert encoded.to_pylist() == [_feast(row, ValueType.STRING_LIST) for row in rows]
    assert decode(encoded, pl.List(pl.String())).to_list() == rows


def test_bytes_that_do_not_begin_at_the_start_of_their_buffer_are_read() -> None:
    encoded = encode(pl.Series("x", ["a", "bc", None, "def"]))
    assert decode(encoded.slice(1), pl.String()).to_list() == ["bc", None, "def"]


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="materialize again"):
        decode(encode(pl.Series("x", ["a"])), pl.Int64())


def test_a_null_in_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match="a list holds a null"):
        encode(pl.Series("x", [["a", None]]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(texts, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=8))
def test_entity_keys_are_those_of_feast(rows: list[tuple[str, int]]) -> None:
    columns = [pl.Series("user_id", [row[0] for row in rows]), pl.Series("item", [row[1] for row in rows])]
    wanted = [
        serialize_entity_key(
            EntityKey(join_keys=["user_id", "item"], entity_values=[Value(string_val=text), Value(int64_val=number)]),
            entity_key_serialization_version=3,
        )
        for text, number in rows
    ]
    assert entity_keys(columns).to_pylist() == wanted


def test_a_handful_of_text_keys_are_the_same_keys() -> None:
    names = ["", "ü", "x" * 300]
    assert text_keys("user_id", names) == entity_keys([pl.Series("user_id", names)]).to_pylist()


def test_timestamps_are_those_of_protobuf() -> None:
    moments = [
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1, 0, 0, 0, 7, UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
    ]
    wanted = []
    for moment in moments:
        stamp = Timestamp()
        stamp.FromDatetime(moment)
        wanted.append(stamp.SerializeToString())
    assert timestamps(pl.Series(moments, dtype=pl.Datetime("us", "UTC"))).to_pylist() == wanted


def _feast(row: Any, kind: ValueType) -> bytes:
    if row is None:
        return b""
    values: Any = [np.array(row, dtype=object) if isinstance(row, list) and kind == ValueType.BYTES_LIST else row]
    if isinstance(row, list) and not row:
        name = kind.name.lower().replace("double", "double") + "_val"
        value = Value()
        getattr(value, name).SetInParent()
        return value.SerializeToString()
    return python_values_to_proto_values(values, kind)[0].SerializeToString()


def _as_feast_reads(row: Any) -> Any:
    return None if isinstance(row, float) and math.isnan(row) else row


def _comparable(rows: list[Any]) -> list[Any]:
    def one(value: Any) -> Any:
        if isinstance(value, float):
            return np.float64(value).tobytes() if not math.isnan(value) else "nan"
        return [one(item) for item in value] if isinstance(value, list) else value

    return [one(row) for row in rows]


def test_arrow_without_rows() -> None:
    assert decode(pa.array([], pa.binary()), pl.Int64()).to_list() == []
