"""A file that SQLite can read, with one table, written straight from columns.

SQLite takes a row from Python as one object a value. A column of Arrow is bytes already, so the pages are put together
here in whole columns, as the format says (https://www.sqlite.org/fileformat2.html, sections 1.3, 1.6, 2.1), and SQLite
reads them from an attached file. The table is a b-tree without an index, its rows numbered from 1 in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Longs = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

PAGE = 65_536
#: What a row may take without a page of its own for the rest of it, which is not written here.
MAX_ROW = PAGE - 100
_LEAF, _INNER = 0x0D, 0x05
_INT64 = 6


def write_table(path: Path, name: str, columns: Mapping[str, pa.Array]) -> bool:
    """Write the table, where all its rows are small enough; whether they were.

    Args:
        columns: text, bytes or 64-bit integers, nulls included, all of one length and with at least one row.
    """
    cells, lengths = _cells(list(columns.values()))
    if lengths.max() > MAX_ROW:
        return False
    pages, last_rows = _leaves(cells, lengths)
    levels, count = [pages], len(pages) + 1
    numbers = np.arange(2, count + 1)
    while len(numbers) > 1:
        above, numbers, last_rows = _inner(numbers, last_rows, first=count + 1)
        levels.append(above)
        count += len(above)
    with path.open("wb") as file:
        file.write(_head(name, list(columns), root=int(numbers[0]), count=count))
        for level in levels:
            file.write(level.data)
    return True


def _cells(columns: list[pa.Array]) -> tuple[Bytes, Longs]:
    """The cells of all rows one after the other: payload size, row number, header of types, values."""
    types, bodies = zip(*(_typed(column) for column in columns), strict=True)
    sizes: Longs = np.sum([pc.binary_length(body).to_numpy() for body in bodies], axis=0, dtype=np.int64)
    header = [_varints(kinds) for kinds in types]
    header_sizes: Longs = np.sum([np.ones_like(sizes), *(widths for _, widths in header)], axis=0, dtype=np.int64)
    rows = np.arange(1, len(sizes) + 1)
    parts = [_varints(sizes + header_sizes), _varints(rows), _varints(header_sizes), *header]
    joined = pc.binary_join_element_wise(_packed(parts), *bodies, pa.scalar(b"", pa.binary()))
    offsets = np.frombuffer(joined.buffers()[1], np.int32, len(joined) + 1).astype(np.int64)
    return np.frombuffer(joined.buffers()[2], np.uint8)[: offsets[-1]], np.diff(offsets)


def _typed(column: pa.Array) -> tuple[Longs, pa.BinaryArray]:
    """The serial type of each value, and its bytes; none for a null."""
    known = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(column.type):
        values = column.cast(pa.int64()).fill_null(0).to_numpy().astype(">i8")
        widths = np.where(known, 8, 0)
        offsets = np.append(0, widths.cumsum()).astype(np.int32)
        data = values[known].tobytes()
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        return np.where(known, _INT64, 0), pa.BinaryArray.from_buffers(pa.binary(), len(column), buffers)
    text = pa.types.is_string(column.type)
    body = pc.fill_null(column.cast(pa.binary()), b"")
    sizes = pc.binary_length(body).to_numpy().astype(np.int64)
    return np.where(known, 2 * sizes + (13 if text else 12), 0), body


def _varints(values: Longs) -> tuple[Bytes, Longs]:
    """SQLite's variable-length integers below 2^28: a table with a row a value, its bytes at the end, and how many."""
    widths = 1 + (values >= 1 << 7) + (values >= 1 << 14) + (values >= 1 << 21)
    longest = int(widths.max())
    table = np.empty((len(values), longest), np.uint8)
    for byte in range(longest):
        table[:, longest - 1 - byte] = values >> 7 * byte & 0x7F | (0x80 if byte else 0)
    return table, widths


def _packed(parts: list[tuple[Bytes, Longs]]) -> pa.BinaryArray:
    """Row by row, the used bytes of the tables one after the other."""
    table = np.concatenate([digits for digits, _ in parts], axis=1)
    used = np.concatenate(
        [np.arange(digits.shape[1]) >= digits.shape[1] - widths[:, None] for digits, widths in parts], axis=1
    )
    sizes = np.sum([widths for _, widths in parts], axis=0)
    offsets = np.append(0, sizes.cumsum()).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(table[used])]
    return pa.BinaryArray.from_buffers(pa.binary(), len(table), buffers)


def _leaves(cells: Bytes, lengths: Longs) -> tuple[npt.NDArray[np.uint8], Longs]:
    """The pages that hold the cells, in order, and the number of each one's last row."""
    ends = lengths.cumsum()
    # Each cell takes two bytes more, for the pointer to it; a page's header takes eight.
    taken = ends + 2 * np.arange(1, len(ends) + 1)
    stops: list[int] = []
    start = base = 0
    while start < len(lengths):
        start = int(np.searchsorted(taken, base + PAGE - 8, side="right"))
        stops.append(start)
        base = int(taken[start - 1])
    pages = np.zeros((len(stops), PAGE), np.uint8)
    begin = 0
    for page, stop in zip(pages, stops, strict=True):
        first = int(ends[begin] - lengths[begin])
        content = PAGE - int(ends[stop - 1] - first)
        pointers = content + ends[begin:stop] - lengths[begin:stop] - first
        page[:8] = np.frombuffer(_page_header(_LEAF, stop - begin, content), np.uint8)
        page[8 : 8 + 2 * (stop - begin)] = pointers.astype(">u2").view(np.uint8)
        page[content:] = cells[first : ends[stop - 1]]
        begin = stop
    return pages, np.array(stops)


def _inner(children: Longs, last_rows: Longs, first: int) -> tuple[npt.NDArray[np.uint8], Longs, Longs]:
    """The level above some pages: its pages, their numbers from `first` on, and each one's last row."""
    each = (PAGE - 12) // 10  # a pointer, the child's number and its last row in at most four bytes
    pages, lasts = [], []
    for start in range(0, len(children), each):
        page = bytearray(PAGE)
        numbers, rows = children[start : start + each], last_rows[start : start + each]
        table, widths = _varints(rows)
        content, pointers = PAGE, []
        for place in range(len(numbers) - 1):
            cell = int(numbers[place]).to_bytes(4, "big") + table[place, table.shape[1] - widths[place] :].tobytes()
            content -= len(cell)
            page[content : content + len(cell)] = cell
            pointers.append(content)
        page[:8] = _page_header(_INNER, len(pointers), content)
        page[8:12] = int(numbers[-1]).to_bytes(4, "big")
        page[12 : 12 + 2 * len(pointers)] = np.array(pointers, ">u2").tobytes()
        pages.append(np.frombuffer(page, np.uint8))
        lasts.append(rows[-1])
    return np.stack(pages), first + np.arange(len(pages)), np.array(lasts)


def _page_header(kind: int, cells: int, content: int) -> bytes:
    return bytes([kind, 0, 0, *cells.to_bytes(2, "big"), *(content % PAGE).to_bytes(2, "big"), 0])


def _head(name: str, columns: list[str], root: int, count: int) -> bytes:
    """The first page: the file's header, and the schema's only row."""
    page = bytearray(PAGE)
    page[:24] = b"SQLite format 3\0" + (1).to_bytes(2, "big") + bytes([1, 1, 0, 64, 32, 32])
    numbers = {24: 1, 28: count, 40: 1, 44: 4, 56: 1, 92: 1, 96: 3_037_000}
    for place, number in numbers.items():  # of changes, pages, schema, its format, UTF-8, of changes again, the writer
        page[place : place + 4] = number.to_bytes(4, "big")
    quoted = ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
    sql = f'CREATE TABLE "{name}" ({quoted})'
    values = [pa.array([text]) for text in ("table", name, name)] + [pa.array([root]), pa.array([sql])]
    cell, _ = _cells(values)
    content = PAGE - len(cell)
    page[content:] = cell.tobytes()
    page[100:108] = _page_header(_LEAF, 1, content)
    page[108:110] = content.to_bytes(2, "big")
    return bytes(page)
