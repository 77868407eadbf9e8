"""The bytes that Feast writes online (protobuf `Value`s and entity keys), for whole columns at a time.

What stands here is the wire format of feast/types/Value.proto as Feast fills it (feast/type_map.py): a null, and a NaN
in a scalar column, is an empty message; a scalar is one field; a list is one embedded message that repeats field 1,
packed for numbers. Columns are made without a Python object per value; only a handful of rows, where the calls would
cost more than the values, is read one by one, by protobuf. The contract tests hold it against Feast's own code, byte by
byte, in both directions.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto  # type: ignore[import-untyped]
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped]

Bytes = npt.NDArray[np.uint8]
Longs = npt.NDArray[np.int64]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
#: Number of the field in `Value` and its wire type, for scalars.
_SCALARS: dict[Any, tuple[int, int]] = {
    pl.Binary: (1, _LENGTH),
    pl.String: (2, _LENGTH),
    pl.Int32: (3, _VARINT),
    pl.Int64: (4, _VARINT),
    pl.Float64: (5, _FIXED64),
    pl.Float32: (6, _FIXED32),
    pl.Boolean: (7, _VARINT),
}
#: Number of the field in `Value` for lists of these.
_LISTS: dict[Any, int] = {
    pl.Binary: 11,
    pl.String: 12,
    pl.Int32: 13,
    pl.Int64: 14,
    pl.Float64: 15,
    pl.Float32: 16,
    pl.Boolean: 17,
}
_WIDTHS: dict[Any, Any] = {pl.Float64: np.float64, pl.Float32: np.float32}
#: ValueType.STRING and the integers, as entity keys name them.
_KEY_TYPES: dict[Any, tuple[int, Any]] = {pl.String: (2, None), pl.Int32: (3, np.int32), pl.Int64: (4, np.int64)}


#: Up to so many rows are decoded one by one.
FEW = 8


def supports(dtype: pl.DataType) -> bool:
    """Whether columns of this type can be encoded and decoded here."""
    if isinstance(dtype, pl.List):
        return dtype.inner in _LISTS
    return dtype in _SCALARS


def encode(column: pl.Series) -> pa.BinaryArray:
    """The serialized `Value` of each row; empty for a null, and for a NaN.

    Raises:
        ValueError: the type is not supported, or a list holds a null.
    """
    dtype = column.dtype
    if not supports(dtype):
        raise ValueError(f"{column.name}: values of type {dtype} are not encoded here")
    column = column.rechunk()
    if isinstance(dtype, pl.List):
        return _encode_lists(column, dtype.inner)
    if dtype.is_float():
        column = column.fill_nan(None)
    field, wire = _SCALARS[dtype]
    payload = _payloads(column.drop_nulls(), dtype)
    if wire == _LENGTH:
        payload = _with_lengths(payload)
    tagged = _join(_constant(_tag(field, wire), len(payload)), payload)
    return _spread(tagged, column.is_not_null().to_numpy())


def decode(values: pa.BinaryArray, dtype: pl.DataType) -> pl.Series:
    """The column that these serialized `Value`s hold; null for a null and for an empty message.

    Raises:
        ValueError: the type is not supported, or a message holds another type.
    """
    if len(values) <= FEW and supports(dtype):
        return pl.Series(decode_each(values.to_pylist(), dtype), dtype=dtype)
    lengths, data = _lengths(values), _data(values)
    starts = lengths.cumsum() - lengths
    present = lengths > 0
    if isinstance(dtype, pl.List) and supports(dtype):
        field, wire = _LISTS[dtype.inner], _LENGTH
    elif dtype in _SCALARS:
        field, wire = _SCALARS[dtype]
    else:
        raise ValueError(f"values of type {dtype} are not decoded here")
    tag = _tag(field, wire)
    for place, byte in enumerate(tag):
        if not (data[starts[present] + place] == byte).all():
            raise ValueError(
                f"expected values of type {dtype}, got others; apply the declarations and materialize again"
            )
    header = np.full(int(present.sum()), len(tag), np.int64)
    if wire == _LENGTH:
        header += _varint_widths(data, starts[present] + len(tag))
    body, sizes = _cut(data, starts[present], lengths[present], header)
    if isinstance(dtype, pl.List):
        found = _decode_lists(body, sizes, dtype.inner)
    else:
        found = _decode_scalars(body, sizes, dtype)
    return _place(found, present)


def decode_each(values: Iterable[bytes | None], dtype: pl.DataType) -> list[Any]:
    """`decode` as Python values, for a handful of rows.

    Raises:
        ValueError: the type is not supported, or a message holds another type.
    """
    name, is_list = _slot(dtype)
    read = _message().FromString
    found: list[Any] = []
    for value in values:
        if not value:
            found.append(None)
            continue
        message = read(value)
        if message.WhichOneof("val") != name:
            raise ValueError(
                f"expected values of type {dtype}, got others; apply the declarations and materialize again"
            )
        content = getattr(message, name)
        found.append(list(content.val) if is_list else content)
    return found


def entity_keys(columns: Sequence[pl.Series]) -> pa.BinaryArray:
    """Feast's entity key (version 3) of each row: names sorted, then the values in the names' order.

    Raises:
        ValueError: a key column is neither text nor integer, or holds a null.
    """
    columns = sorted(columns, key=lambda column: column.name)
    head = key_prefix([column.name for column in columns])
    parts = [_constant(head, len(columns[0]))]
    for column in columns:
        if column.dtype not in _KEY_TYPES or column.null_count():
            raise ValueError(f"{column.name}: expected a text or integer key without nulls, got {column.dtype}")
        code, width = _KEY_TYPES[column.dtype]
        if width is None:
            payload = column.rechunk().cast(pl.Binary).to_arrow().cast(pa.binary())
            sizes = _fixed(_lengths(payload).astype("<u4"))
            parts += [_constant(struct.pack("<I", code), len(column)), sizes, payload]
        else:
            size = np.dtype(width).itemsize
            parts += [_constant(struct.pack("<II", code, size), len(column)), _fixed(column.to_numpy().astype(width))]
    return _join(*parts)


def key_prefix(names: Sequence[str]) -> bytes:
    """What every entity key of these join keys begins with: their number and names."""
    encoded = [name.encode() for name in sorted(names)]
    return struct.pack("<I", len(encoded)) + b"".join(struct.pack("<II", 2, len(name)) + name for name in encoded)


def text_keys(name: str, values: Sequence[str]) -> list[bytes]:
    """`entity_keys` of one text column, for a handful of values."""
    head = key_prefix([name])
    encoded = [value.encode() for value in values]
    return [head + struct.pack("<II", 2, len(value)) + value for value in encoded]


def timestamps(moments: pl.Series) -> pa.BinaryArray:
    """google.protobuf.Timestamp of each moment (microseconds UTC): seconds and nanoseconds, left out when zero."""
    micros = moments.to_physical().to_numpy()
    seconds, nanos = micros // 1_000_000, micros % 1_000_000 * 1000
    return _join(_varint_field(1, seconds), _varint_field(2, nanos))


@functools.cache
def _message() -> Any:
    """The class of Feast's `Value`, declared here from the fields above, so that Feast need not be imported."""
    declared = FieldDescriptorProto
    kinds: dict[Any, Any] = {
        pl.Binary: declared.TYPE_BYTES,
        pl.String: declared.TYPE_STRING,
        pl.Int32: declared.TYPE_INT32,
        pl.Int64: declared.TYPE_INT64,
        pl.Float64: declared.TYPE_DOUBLE,
        pl.Float32: declared.TYPE_FLOAT,
        pl.Boolean: declared.TYPE_BOOL,
    }
    file = FileDescriptorProto(name="evensong_value.proto", package="evensong", syntax="proto3")
    value = file.message_type.add(name="Value")
    value.oneof_decl.add(name="val")
    for dtype, kind in kinds.items():
        name = _list_name(dtype)
        file.message_type.add(name=name).field.add(name="val", number=1, type=kind, label=declared.LABEL_REPEATED)
        value.field.add(name=_name(dtype), number=_SCALARS[dtype][0], type=kind, oneof_index=0)
        value.field.add(
            name=name, number=_LISTS[dtype], type=declared.TYPE_MESSAGE, type_name=f".evensong.{name}", oneof_index=0
        )
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("evensong.Value"))


@functools.cache
def _slot(dtype: pl.DataType) -> tuple[str, bool]:
    """The field of `Value` that holds this type, and whether it is a list."""
    if not supports(dtype):
        raise ValueError(f"values of type {dtype} are not decoded here")
    if isinstance(dtype, pl.List):
        return _list_name(dtype.inner), True
    return _name(dtype), False


def _name(dtype: Any) -> str:
    return str(dtype.base_type()).lower()


def _list_name(dtype: Any) -> str:
    return f"{_name(dtype)}_list"


def _encode_lists(column: pl.Series, inner: Any) -> pa.BinaryArray:
    rows = column.drop_nulls()
    items = rows.explode(empty_as_null=False, keep_nulls=False)
    if items.null_count():
        raise ValueError(f"{column.name}: a list holds a null, which Feast cannot store; drop it")
    counts = rows.list.len().to_numpy().astype(np.int64)
    payload = _payloads(items, inner)
    if inner in (pl.String, pl.Binary):
        body = _group(_join(_constant(_tag(1, _LENGTH), len(payload)), _with_lengths(payload)), counts)
    else:
        packed = _group(payload, counts)
        head = _varints(_lengths(packed), before=_tag(1, _LENGTH))
        body = _spread(
            _join(head, packed).filter(pa.array(counts > 0)), counts > 0
        )  # an empty list has no field at all
    tagged = _join(_constant(_tag(_LISTS[inner], _LENGTH), len(body)), _with_lengths(body))
    return _spread(tagged, column.is_not_null().to_numpy())


def _payloads(items: pl.Series, dtype: Any) -> pa.BinaryArray:
    """The bytes of each value, without tag and length."""
    if dtype in _WIDTHS:
        return _fixed(items.to_numpy().astype(_WIDTHS[dtype]))
    if dtype in (pl.String, pl.Binary):
        return items.cast(pl.Binary).rechunk().to_arrow().cast(pa.binary())
    return _varints(items.cast(pl.Int64).to_numpy())


def _decode_scalars(body: Bytes, sizes: Longs, dtype: Any) -> pl.Series:
    if dtype in _WIDTHS:
        return pl.Series(body.view(_WIDTHS[dtype]))
    if dtype in (pl.String, pl.Binary):
        return _text(body, sizes, dtype)
    return pl.Series(_read_varints(body)).cast(dtype)


def _decode_lists(body: Bytes, sizes: Longs, inner: Any) -> pl.Series:
    starts = sizes.cumsum() - sizes
    if inner in (pl.String, pl.Binary):
        ends = sizes.cumsum()
        heads = _chain(body)
        header = 1 + _varint_widths(body, heads + 1)
        lengths = np.diff(np.append(heads, len(body)))
        data, widths = _cut(body, heads, lengths, header)
        items = _text(data, widths, inner)
        offsets = np.searchsorted(heads, np.append(starts, ends[-1] if len(ends) else 0))
        return _lists(items, offsets)
    full = sizes > 0
    header = 1 + _varint_widths(body, starts[full] + 1)
    data, widths = _cut(body, starts[full], sizes[full], header)
    items = _decode_scalars(data, widths, inner)
    counts = np.zeros(len(sizes), np.int64)
    if inner in _WIDTHS:
        counts[full] = widths // np.dtype(_WIDTHS[inner]).itemsize
    else:
        last = np.concatenate([[0], (data < 0x80).cumsum()])
        counts[full] = np.diff(last[np.concatenate([[0], widths.cumsum()])])
    return _lists(items, np.concatenate([[0], counts.cumsum()]))


def _chain(body: Bytes) -> Longs:
    """Where the elements of a repeated field of length-delimited values begin.

    Each element says how long it is, so one leads to the next. The jump from every byte is computed as if an element
    began there; then the bytes that the first one reaches are marked, twice as far in each round.
    """
    size = len(body)
    if not size:
        return np.zeros(0, np.int64)
    places = np.arange(size)
    width, length = _varint_at(body, np.minimum(places + 1, size - 1))
    jump = np.append(np.minimum(places + 1 + width + length, size), size)
    reached = np.zeros(size + 1, bool)
    reached[0] = True
    while True:
        onward = jump[np.flatnonzero(reached)]
        if reached[onward].all():
            return np.flatnonzero(reached[:size])
        reached[onward] = True
        jump = jump[jump]


def _varint_at(data: Bytes, places: Longs) -> tuple[Longs, Longs]:
    """Width and value of the varint of at most five bytes at each place."""
    width = np.ones(len(places), np.int64)
    value = (data[places] & 0x7F).astype(np.int64)
    more = data[places] >= 0x80
    for byte in range(1, 5):
        if not more.any():
            break
        following = data[np.minimum(places + byte, len(data) - 1)]
        value += np.where(more, (following & 0x7F).astype(np.int64) << 7 * byte, 0)
        width += more
        more &= following >= 0x80
    return width, value


def _varint_widths(data: Bytes, places: Longs) -> Longs:
    return _varint_at(data, places)[0] if len(places) else np.zeros(0, np.int64)


def _read_varints(data: Bytes) -> Longs:
    """All the varints that stand one after the other."""
    ends = np.flatnonzero(data < 0x80)
    starts = np.append(0, ends[:-1] + 1) if len(ends) else ends
    values = np.zeros(len(ends), np.uint64)
    for byte in range(10):
        inside = starts + byte <= ends
        if not inside.any():
            break
        septet = (data[np.minimum(starts + byte, max(len(data) - 1, 0))] & 0x7F).astype(np.uint64)
        values |= np.where(inside, septet << np.uint64(7 * byte), np.uint64(0))
    return values.view(np.int64)


def _varints(values: Longs, before: bytes = b"") -> pa.BinaryArray:
    """Each value as a varint (negative ones take ten bytes), with the same bytes before each."""
    unsigned = np.ascontiguousarray(values, np.int64).view(np.uint64)
    widths = np.ones(len(unsigned), np.int64)
    for byte in range(1, 10):
        widths += unsigned >= np.uint64(1 << 7 * byte)
    longest = int(widths.max(initial=1))
    table = np.zeros((len(unsigned), len(before) + longest), np.uint8)
    table[:, : len(before)] = np.frombuffer(before, np.uint8)
    for byte in range(longest):
        septet = ((unsigned >> np.uint64(7 * byte)) & np.uint64(0x7F)).astype(np.uint8)
        table[:, len(before) + byte] = septet | np.where(byte + 1 < widths, 0x80, 0).astype(np.uint8)
    widths += len(before)
    flat = table[np.arange(table.shape[1]) < widths[:, None]] if (widths < table.shape[1]).any() else table.reshape(-1)
    return _binary(flat, widths)


def _varint_field(field: int, values: Longs) -> pa.BinaryArray:
    """A varint field, left out where the value is zero."""
    used = values != 0
    return _spread(_varints(values[used], before=_tag(field, _VARINT)), used, missing=b"")


def _with_lengths(payload: pa.BinaryArray) -> pa.BinaryArray:
    return _join(_varints(_lengths(payload)), payload)


def _tag(field: int, wire: int) -> bytes:
    number = field << 3 | wire
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80, number >> 7])


def _fixed(values: npt.NDArray[Any]) -> pa.BinaryArray:
    """Each value's own bytes, little-endian."""
    return _binary(np.ascontiguousarray(values).view(np.uint8), np.full(len(values), values.dtype.itemsize))


def _constant(value: bytes, count: int) -> pa.BinaryArray:
    return _binary(np.tile(np.frombuffer(value, np.uint8), count), np.full(count, len(value)))


def _join(*parts: pa.BinaryArray) -> pa.BinaryArray:
    """Row by row, the parts one after the other."""
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.binary()))


def _group(items: pa.BinaryArray, counts: Longs) -> pa.BinaryArray:
    """Each row's items one after the other; the items of all rows stand in one buffer already."""
    ends = np.append(0, _lengths(items).cumsum())
    return _binary(_data(items), np.diff(ends[np.append(0, counts.cumsum())]))


def _spread(values: pa.BinaryArray, present: npt.NDArray[np.bool_], missing: bytes = b"") -> pa.BinaryArray:
    """The values in the rows that are present, in order, and empty bytes in the others."""
    if present.all():
        return values
    lengths = np.zeros(len(present), np.int64)
    lengths[present] = _lengths(values)
    return _binary(_data(values), lengths)


def _place(found: pl.Series, present: npt.NDArray[np.bool_]) -> pl.Series:
    """The values in the rows that are present, nulls in the others."""
    if present.all():
        return found
    places = np.cumsum(present) - 1
    return (
        found.gather(pl.Series(places).set(pl.Series(~present), None))
        if len(found)
        else found.extend_constant(None, len(present))
    )


def _text(data: Bytes, sizes: Longs, dtype: Any) -> pl.Series:
    series = pl.from_arrow(_binary(data, sizes))
    assert isinstance(series, pl.Series)
    return series.cast(dtype)


def _lists(items: pl.Series, offsets: Longs) -> pl.Series:
    series = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), items.rechunk().to_arrow()))
    assert isinstance(series, pl.Series)
    return series


def _cut(data: Bytes, starts: Longs, lengths: Longs, header: Longs) -> tuple[Bytes, Longs]:
    """The bytes of each piece without its header, one after the other, and their lengths."""
    sizes = lengths - header
    total = int(sizes.sum())
    ends = sizes.cumsum()
    return data[np.arange(total) + np.repeat(starts + header - (ends - sizes), sizes)], sizes


def _binary(data: Bytes, lengths: Longs) -> pa.BinaryArray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError("more than 2 GiB in one block; encode fewer rows at a time")
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.BinaryArray.from_buffers(pa.binary(), len(lengths), buffers)


def _offsets(values: pa.BinaryArray) -> npt.NDArray[np.int32]:
    return np.frombuffer(values.buffers()[1], np.int32, len(values) + 1, values.offset * 4)


def _lengths(values: pa.BinaryArray) -> Longs:
    if not len(values):
        return np.zeros(0, np.int64)
    return np.diff(_offsets(values)).astype(np.int64)


def _data(values: pa.BinaryArray) -> Bytes:
    """The bytes of all rows, one after the other."""
    if not len(values) or values.buffers()[2] is None:
        return np.zeros(0, np.uint8)
    offsets = _offsets(values)
    return np.frombuffer(values.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
