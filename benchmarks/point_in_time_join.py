"""The point-in-time join through Feast's API: our offline store against Feast's DuckDB store, reading and writing
included, each in a process of its own.

Two shapes against the peer: few entities with long histories (200,000 × 1,000,000 rows × 16 features over 6,000
entities; the last line's `ratio`), and many with short ones (1 M × 5 M × 10 over 50,000). Then 2 M × 20 M rows alone,
in a process of its own whose peak memory is measured. `--scale 0.05` shrinks every shape, `--shapes small,large,huge`
chooses.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from benchmarks._report import report, say

OURS, PEER = "evensong.features.offline_store.PolarsOfflineStore", "duckdb"
START = datetime(2026, 1, 1, tzinfo=UTC)
SPAN_SECONDS = 90 * 24 * 3600


class Shape(NamedTuple):
    """Rows of the entity frame, rows of the feature table, features, entities."""

    labels: int
    rows: int
    columns: int
    entities: int


SHAPES = {
    "small": Shape(200_000, 1_000_000, 16, 6_000),
    "large": Shape(1_000_000, 5_000_000, 10, 50_000),
    "huge": Shape(2_000_000, 20_000_000, 10, 200_000),
}


def main(argv: list[str]) -> None:
    """Run the shapes and print the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks point_in_time_join")
    parser.add_argument("--scale", type=float, default=1.0, help="rows and entities, as a share of the full shapes")
    parser.add_argument("--shapes", default="small,large,huge")
    parser.add_argument("--runs", type=int, default=5, help="the best of so many runs counts, for ours and the peer")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=["ours", "peer", "alone"], help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.side:
        alone = options.side == "alone"
        print(json.dumps(_alone(options.folder) if alone else _side(options.folder, options.side, options.runs)))
        return
    shapes = {name: _scaled(SHAPES[name], options.scale) for name in options.shapes.split(",")}
    figures: dict[str, Any] = {}
    for name in [name for name in ("small", "large") if name in shapes]:
        figures[name] = _compared(name, shapes[name], options.runs)
    others: dict[str, Any] = {"shapes": {name: shape._asdict() for name, shape in shapes.items()}}
    for name, (ours, peer) in figures.items():
        others |= {f"{name}_seconds": ours, f"{name}_peer_seconds": peer, f"{name}_ratio": peer / ours}
        others[f"{name}_labels_per_second"] = shapes[name].labels / ours
    if "huge" in shapes:
        others |= {f"huge_{key}": value for key, value in _streamed(shapes["huge"]).items()}
    ours, peer = figures.get("small") or next(iter(figures.values()), (others.get("huge_seconds", 0.0), 0.0))
    report(
        benchmark="point_in_time_join",
        ours=ours,
        peer=peer,
        peer_name="feast duckdb offline store" if figures else "none: no shape that the peer runs was chosen",
        ratio=peer / ours,
        unit="seconds",
        **others,
    )


def make(folder: Path, shape: Shape, seed: int = 7) -> None:
    """A feature table (late arrivals among its rows, microseconds) and an entity frame, as Parquet, in what pandas,
    Spark and DuckDB compress by."""
    rng = np.random.default_rng(seed)
    micros = int(START.timestamp()) * 1_000_000

    def moments(size: int) -> np.ndarray:
        return micros + rng.integers(0, SPAN_SECONDS * 1_000_000, size)

    event = moments(shape.rows)
    created = event + np.where(rng.random(shape.rows) < 0.1, rng.integers(0, 3600 * 1_000_000, shape.rows), 0)
    features = pl.DataFrame(
        {
            "entity_id": rng.integers(0, shape.entities, shape.rows),
            "event_timestamp": event,
            "created": created,
            **{f"f{i}": rng.random(shape.rows, np.float32) for i in range(shape.columns)},
        }
    )
    stamps = pl.col("event_timestamp", "created").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    features.with_columns(stamps).write_parquet(
        folder / "features.parquet", compression="snappy", row_group_size=250_000
    )
    labels = pl.DataFrame(
        {"entity_id": rng.integers(0, shape.entities, shape.labels), "event_timestamp": moments(shape.labels)}
    )
    # No two labels of one entity at one moment: the peer would give one row for both.
    labels = labels.unique(maintain_order=True).with_row_index("label")
    stamp = pl.col("event_timestamp").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    labels.with_columns(stamp).write_parquet(folder / "labels.parquet", compression="snappy")


def open_store(folder: Path, offline_store: str, columns: int) -> Any:
    """A feature store over the folder's feature table."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Float32, Int64

    store = FeatureStore(
        config=RepoConfig(
            project="benchmark",
            provider="local",
            registry=str(folder / f"registry_{offline_store.rsplit('.', 1)[-1]}.db"),
            offline_store={"type": offline_store},
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    entity = Entity(name="entity", join_keys=["entity_id"], value_type=ValueType.INT64)
    source = FileSource(
        path=str(folder / "features.parquet"),
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    view = FeatureView(
        name="view",
        entities=[entity],
        ttl=timedelta(days=30),
        source=source,
        schema=[Field(name="entity_id", dtype=Int64), *(Field(name=f"f{i}", dtype=Float32) for i in range(columns))],
    )
    store.apply([entity, source, view])
    return store


def join(store: Any, folder: Path, columns: int, name: str) -> float:
    """Read the labels, join, let the store write the answer as a saved dataset; the seconds that took.

    Each store gets the labels as it takes them best: ours as they are read, the peer's as the pandas frame it asks for.
    The dataset is a new one each time, as it is by Feast's default.
    """
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    answer = folder / f"{name}.parquet"
    answer.unlink(missing_ok=True)
    began = time.perf_counter()
    labels = pl.read_parquet(folder / "labels.parquet")
    ours = store.config.offline_store.type == OURS
    job = store.get_historical_features(
        entity_df=labels if ours else labels.to_pandas(),
        features=[f"view:f{i}" for i in range(columns)],
        filter_by_created_timestamp=True,
    )
    job.persist(SavedDatasetFileStorage(str(answer)))
    return time.perf_counter() - began


def _compared(name: str, shape: Shape, runs: int) -> tuple[float, float]:
    """The best seconds of ours and of the peer, whose answers are compared before the second round.

    Each has a process of its own, as its user would: in one process each would pay for the memory that the other has
    just given back. Two rounds, so that a slow minute of the machine does not fall on one side alone.
    """
    best = {"ours": float("inf"), "peer": float("inf")}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        say(f"{name}: {shape}: making the data")
        make(folder, shape)
        (folder / "shape.json").write_text(json.dumps(shape))
        for number, count in enumerate(filter(None, (runs - runs // 2, runs // 2))):
            for side in best:
                seconds = _in_a_process("--side", side, "--runs", str(count), "--folder", place)
                best[side] = min(best[side], *seconds)
                say(f"{name}: round {number + 1}: {side}: {', '.join(f'{one:.2f}' for one in seconds)} s")
            if number == 0:
                _check_equal(folder)
                say(f"{name}: the answers are equal")
    return best["ours"], best["peer"]


def _in_a_process(*options: str) -> Any:
    """What this module prints last, as JSON, when it is run with the options."""
    command = [sys.executable, "-m", "benchmarks", "point_in_time_join", *options]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(answer.splitlines()[-1])


def _side(folder: Path, side: str, runs: int) -> list[float]:
    """The seconds of each join by one side."""
    shape = Shape(*json.loads((folder / "shape.json").read_text()))
    store = open_store(folder, {"ours": OURS, "peer": PEER}[side], shape.columns)
    return [join(store, folder, shape.columns, side) for _ in range(runs)]


def _check_equal(folder: Path) -> None:
    ours, peer = (pl.read_parquet(folder / f"{side}.parquet") for side in ("ours", "peer"))
    labels = pl.read_parquet(folder / "labels.parquet")
    if not ours.select("label").equals(labels.select("label")):
        raise SystemExit("ours: rows in are not rows out in the same order")
    peer = peer.sort("label").select(ours.columns)
    if not ours.drop("event_timestamp").equals(peer.drop("event_timestamp")):
        raise SystemExit("the answers differ")


def _streamed(shape: Shape) -> dict[str, Any]:
    """The largest shape, in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        say(f"huge: {shape}: making the data")
        made = "import sys, pathlib; from benchmarks.point_in_time_join import Shape, make; "
        made += f"make(pathlib.Path(sys.argv[1]), Shape{tuple(shape)})"
        subprocess.run([sys.executable, "-c", made, place], check=True)
        Path(place, "shape.json").write_text(json.dumps(shape))
        figures: dict[str, Any] = _in_a_process("--side", "alone", "--folder", place)
        _check_sample(Path(place), shape)
        say(f"huge: {figures}; a sample agrees with the definition")
    return figures


def _alone(folder: Path) -> dict[str, Any]:
    import resource

    shape = Shape(*json.loads((folder / "shape.json").read_text()))
    seconds = join(open_store(folder, OURS, shape.columns), folder, shape.columns, "ours")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "peak_gib": peak, "labels_per_second": shape.labels / seconds}


def _check_sample(folder: Path, shape: Shape) -> None:
    """Compares the answers of a few entities with the definition, label by label."""
    entities = list(range(0, shape.entities, max(1, shape.entities // 5)))
    chosen = pl.col("entity_id").is_in(entities)
    labels = pl.scan_parquet(folder / "labels.parquet").filter(chosen).collect()
    rows = pl.scan_parquet(folder / "features.parquet").filter(chosen).collect()
    answer = pl.scan_parquet(folder / "ours.parquet").filter(chosen).collect().sort("label")
    for label, entity, moment in labels.select("label", "entity_id", "event_timestamp").iter_rows():
        known = rows.filter(
            (pl.col("entity_id") == entity) & (pl.col("event_timestamp") <= moment) & (pl.col("created") <= moment)
        )
        newest = known.sort("event_timestamp", "created").tail(1)
        wanted = newest.filter(pl.col("event_timestamp") >= moment - timedelta(days=30))["f0"].to_list() or [None]
        if answer.filter(pl.col("label") == label)["f0"].to_list() != wanted:
            raise SystemExit(f"the answer for label {label} is wrong")


def _scaled(shape: Shape, scale: float) -> Shape:
    return Shape(int(shape.labels * scale), int(shape.rows * scale), shape.columns, max(1, int(shape.entities * scale)))
