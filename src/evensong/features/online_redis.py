"""Feast's layout in Redis: one hash an entity, a field a feature, read and written in whole columns.

The key is Feast's entity key followed by the project; a feature's field is the little-endian murmur3 of
`view:feature`, and `_ts:view` holds the row's moment (feast/infra/online_stores/redis.py). Commands are put together
column by column as one block of the Redis protocol, so that no Python object is made per value.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mmh3
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from evensong.features.encoding import timestamps
from evensong.features.online_rows import Rows

#: Keys in one block of commands: many enough to be quick, few enough for the server to hold its answers.
BLOCK = 20_000
#: Entities whose features are asked for at once.
ROWS = 5_000
#: Who writes a night's features has time; who answers a request has not, and says so.
PATIENCE_SECONDS = 60.0


class RedisOnline:
    """The rows of Feast's online store in one Redis database."""

    def __init__(self, client: Any, project: str) -> None:
        self._client = client
        self._project = project

    @staticmethod
    def connect(connection_string: str, project: str, timeout_seconds: float = PATIENCE_SECONDS) -> RedisOnline:
        """Connect as Feast does, by `host:port,option=value,…`; each answer of the server is waited for so long."""
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as LostConnectionError
        from redis.retry import Retry

        first, *rest = connection_string.split(",")
        host, port = first.rsplit(":", 1)
        options = dict(part.split("=", 1) for part in rest)
        return RedisOnline(
            Redis(
                host=host,
                port=int(port),
                db=int(options.get("db", 0)),
                username=options.get("username"),
                password=options.get("password"),
                ssl=options.get("ssl", "false").lower() == "true",
                socket_connect_timeout=timeout_seconds,
                socket_timeout=timeout_seconds,
                # a connection that the server has closed meanwhile is opened anew; one that hangs is not tried again
                retry=Retry(NoBackoff(), 1, supported_errors=(LostConnectionError,)),
            ),
            project,
        )

    def read(self, keys: Sequence[bytes], features: Sequence[tuple[str, str]]) -> list[Sequence[bytes | None]]:
        """The stored values of each `(view, feature)`, a row an entity key; nothing where nothing is stored."""
        ending = self._project.encode()
        fields = [_field(view, feature) for view, feature in features]
        if len(keys) == 1:
            return [[value] for value in self._client.hmget(keys[0] + ending, fields)]
        found: list[list[bytes | None]] = []
        for start in range(0, len(keys), ROWS):
            with self._client.pipeline(transaction=False) as pipe:
                for key in keys[start : start + ROWS]:
                    pipe.hmget(key + ending, fields)
                found += pipe.execute()
        return list(zip(*found, strict=True)) if found else [() for _ in fields]

    def every_key(self, prefix: bytes, views: Sequence[str]) -> pa.BinaryArray:
        """The entity keys that begin with the prefix, sorted; a key of Redis holds all of an entity's views."""
        ending = self._project.encode()
        pattern = _literally(prefix) + b"*" + _literally(ending)
        found = {key[: len(key) - len(ending)] for key in self._client.scan_iter(pattern, count=10_000)}
        return pa.array(sorted(found), pa.binary())

    def write(self, view: str, blocks: Iterable[Rows]) -> npt.NDArray[np.bool_]:
        """Write the rows except where a newer one is stored that somebody else wrote; which rows were written."""
        return np.concatenate([np.zeros(0, bool), *(self._write_block(view, block) for block in blocks)])

    def remove(self, view: str, keys: pa.BinaryArray, features: Sequence[str], moments: pl.Series) -> None:
        """Remove what the view says of these keys, except where it is newer than the moments."""
        names = self._names(keys)
        stored = self._stored(view, names)
        old = pa.array(stored.known & (stored.micros <= moments.to_physical().to_numpy()))
        fields = [f"_ts:{view}".encode(), *(_field(view, feature) for feature in features)]
        parts: list[Any] = [f"*{2 + len(fields)}\r\n$4\r\nHDEL\r\n".encode(), *_bulk(names.filter(old))]
        parts += [b"$%d\r\n%s\r\n" % (len(field), field) for field in fields]
        self._send(_commands(parts), pc.sum(old).as_py() or 0)

    def holds(self, view: str, keys: pa.BinaryArray, features: Sequence[str]) -> bool:
        """Whether every one of these features is stored of each key."""
        fields = [f"_ts:{view}".encode(), *(_field(view, feature) for feature in features)]
        with self._client.pipeline(transaction=False) as pipe:
            for name in self._names(keys).to_pylist():
                pipe.hmget(name, fields)
            return all(value is not None for row in pipe.execute() for value in row)

    def token(self, view: str) -> str | None:
        """What `set_token` left."""
        found = self._client.hget(f"evensong:materialized:{self._project}", view)
        return None if found is None else found.decode()

    def set_token(self, view: str, token: str | None) -> None:
        """Leave a mark that is lost when the database is; none removes it."""
        if token is None:
            self._client.hdel(f"evensong:materialized:{self._project}", view)
        else:
            self._client.hset(f"evensong:materialized:{self._project}", view, token)

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _write_block(self, view: str, block: Rows) -> npt.NDArray[np.bool_]:
        names, moments = self._names(block.keys), block.moments
        stored = self._stored(view, names)
        fresh = ~stored.known | (stored.micros <= moments.to_physical().to_numpy())
        if block.ours is not None:
            fresh |= stored.micros <= block.ours.to_physical().fill_null(np.iinfo(np.int64).min).to_numpy()
        values = block.values
        if not fresh.all():
            keep = pa.array(fresh)
            names, moments = names.filter(keep), moments.filter(pl.Series(fresh))
            values = {name: encoded.filter(keep) for name, encoded in values.items()}
        parts: list[Any] = [f"*{2 + 2 * (len(values) + 1)}\r\n$4\r\nHSET\r\n".encode(), *_bulk(names)]
        for field, encoded in [(f"_ts:{view}".encode(), timestamps(moments)), *_named(view, values)]:
            parts += [b"$%d\r\n%s\r\n" % (len(field), field), *_bulk(encoded)]
        self._send(_commands(parts), len(names))
        return fresh

    def _names(self, keys: pa.BinaryArray) -> pa.BinaryArray:
        """The hashes of the entities."""
        ending = pa.scalar(self._project.encode(), pa.binary())
        return pc.binary_join_element_wise(keys, ending, pa.scalar(b"", pa.binary()))

    def _stored(self, view: str, names: pa.BinaryArray) -> _Stored:
        field = f"_ts:{view}".encode()
        ask: list[Any] = [b"*3\r\n$4\r\nHGET\r\n", *_bulk(names), b"$%d\r\n%s\r\n" % (len(field), field)]
        stored = pa.array([answer or b"" for answer in self._send(_commands(ask), len(names))], pa.binary())
        return _Stored(_stored_micros(stored), pc.binary_length(stored).to_numpy() > 0)

    def _send(self, commands: pa.BinaryArray, count: int) -> list[Any]:
        """Send commands, a block at a time, and collect their answers."""
        connection = self._client.connection_pool.get_connection()
        answers: list[Any] = []
        try:
            for start in range(0, count, BLOCK):
                block = commands.slice(start, BLOCK)
                begin, end = block.offset, block.offset + len(block)
                offsets = np.frombuffer(commands.buffers()[1], np.int32, len(commands) + 1, commands.offset * 4)
                first, last = offsets[begin - commands.offset], offsets[end - commands.offset]
                connection.send_packed_command([memoryview(commands.buffers()[2])[first:last]])
                answers += [connection.read_response() for _ in range(len(block))]
        except BaseException:
            connection.disconnect()  # answers that nobody read would be taken for those of the next command
            raise
        finally:
            self._client.connection_pool.release(connection)
        return answers


class _Stored(NamedTuple):
    """The moments of what is stored of some entities, and whether anything is."""

    micros: npt.NDArray[np.int64]
    known: npt.NDArray[np.bool_]


def _commands(parts: Sequence[Any]) -> pa.BinaryArray:
    scalars = [pa.scalar(part, pa.binary()) if isinstance(part, bytes) else part for part in parts]
    return pc.binary_join_element_wise(*scalars, pa.scalar(b"", pa.binary()))


def _bulk(values: pa.BinaryArray) -> list[Any]:
    """`$length\\r\\nvalue\\r\\n` for each row."""
    lengths = pc.cast(pc.cast(pc.binary_length(values), pa.string()), pa.binary())
    return [b"$", lengths, b"\r\n", values, b"\r\n"]


def _named(view: str, values: Mapping[str, pa.BinaryArray]) -> list[tuple[bytes, pa.BinaryArray]]:
    return [(_field(view, name), encoded) for name, encoded in values.items()]


@functools.cache
def _field(view: str, feature: str) -> bytes:
    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def _stored_micros(stored: pa.BinaryArray) -> npt.NDArray[np.int64]:
    """Microseconds of serialized google.protobuf.Timestamps; the nanoseconds below them do not count."""
    from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]

    unique = stored.dictionary_encode()
    micros = [Timestamp.FromString(value).ToMicroseconds() if value else 0 for value in unique.dictionary.to_pylist()]
    return np.array(micros, np.int64)[unique.indices.to_numpy()] if len(stored) else np.zeros(0, np.int64)


def _literally(text: bytes) -> bytes:
    """A pattern of Redis that matches these very bytes."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"*?[]^-\\" else bytes([byte]) for byte in text)
