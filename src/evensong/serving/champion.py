"""The model that answers: follows the alias `champion`, loads a bundle beside the old one, then swaps one reference.

A request takes `Champion.in_use` once and keeps it until it has answered, so a swap never mixes two versions and never
waits for a request; the old model is freed when the last request that holds it ends. Whatever fails leaves the model in
use where it is: a damaged bundle, a registry that is away, an online store that is away.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import math
import threading
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from evensong.data import storage
from evensong.errors import BundleError, EvensongError
from evensong.models.popularity import Popularity
from evensong.serving.freshness import Materialized, materialized
from evensong.serving.metrics import Metrics
from evensong.serving.people import People
from evensong.serving.question import Question
from evensong.settings import Settings
from evensong.types import Frame

if TYPE_CHECKING:
    from evensong.features.online import OnlineFeatures
    from evensong.recommender.funnel import ItemTable, Recommender
    from evensong.registry.versions import ModelVersion

log = logging.getLogger("evensong.serving")

#: A bundle that could not be taken into use is tried again after so long, doubling up to the second figure.
RETRY_SECONDS, MAX_RETRY_SECONDS = 10.0, 300.0
#: A registry that does not answer for so long counts as away; the first question waits for its client's import as well.
FIRST_ASK_SECONDS, ASK_SECONDS = 30.0, 10.0
#: The marker of the last materialization is a small file of the lake; one that hangs holds up no swap.
MARKER_SECONDS = 3.0
#: Where the ledger lies on this machine, a move of the alias is noticed so soon; else at the next poll.
NOTICE_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class InUse:
    """A loaded model and the item features that it answers from; replaced as a whole, never changed."""

    name: str
    version: str
    as_of: str | None
    loaded_at: datetime
    recommender: Recommender
    items: ItemTable | None
    """None while the online store has not given the item features yet: then popular items are all there is."""
    item_features: Frame | None
    """What `items` was prepared from, one row an item, in the order of `recommender.item_ids`."""
    positions: Mapping[str, int]
    """Item id to its row."""
    titles: Mapping[str, tuple[str | None, str | None]]
    """Item id to title and category path."""
    popularity: Popularity
    """The bundle's own fallback, for when the funnel cannot run."""
    materialized: Materialized | None
    """The materialization that `items` was read after."""
    features: Mapping[str, Any] | None = None
    """The features that the model was trained on, as its bundle's manifest records them."""
    redefined: bool = False
    """Whether the store holds other features than those by now: then popular items are all that can be said safely."""

    def popular(self, k: int, exclude: Collection[str]) -> Frame:
        """Popular items in the funnel's form, without the funnel."""
        chosen = self.popularity.top(k, exclude)
        return pl.DataFrame(
            {
                "rank": range(1, len(chosen) + 1),
                "item_id": [item_id for item_id, _ in chosen],
                "score": [score for _, score in chosen],
                "source": ["popularity"] * len(chosen),
            },
            schema={"rank": pl.Int64, "item_id": pl.String, "score": pl.Float64, "source": pl.String},
        )


class Champion:
    """Holds the model in use and keeps it the champion, from a thread of its own."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.in_use: InUse | None = None
        self.features: OnlineFeatures | None = None
        self.people = People(settings)
        self._ledger = Path(settings.place("mlflow", "ledger.jsonl"))
        self.looked = threading.Event()
        """Set once a model answers, or it is known that there is none to load."""
        self._settings = settings
        self._metrics = metrics
        self._warnings: dict[str, str] = {}
        self._failed: tuple[str, float, float] | None = None
        """The version that could not be taken into use, when to try it again, and the wait before that."""
        self._newest: Materialized | None = None
        self._registry = Question("registry", self._ask_registry, first_seconds=FIRST_ASK_SECONDS, seconds=ASK_SECONDS)
        self._marker = Question(
            "marker", lambda: materialized(settings), first_seconds=ASK_SECONDS, seconds=MARKER_SECONDS
        )
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._ready_for: str | None = None
        """The version beside which the champions before it lie on this disk."""
        self._ready_again, self._ready_pause = 0.0, RETRY_SECONDS
        """When to try to fetch them again, and the wait before that."""
        self._keeping = False

    @property
    def warnings(self) -> list[str]:
        """What is wrong at this moment, and what to do."""
        return [self._warnings[key] for key in sorted(self._warnings)]

    @property
    def registry_is_away(self) -> bool:
        """Whether the last look got no answer from the registry, and nothing could be loaded."""
        return self.in_use is None and "registry" in self._warnings

    def start(self) -> None:
        """Begin to follow the alias."""
        self._thread = threading.Thread(target=self._run, name="champion", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; a load that is under way is waited for briefly."""
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=10)
            self._thread = None

    def look(self) -> None:
        """Look once: follow the alias, then the materialization."""
        self._open_features()
        self._follow_alias()
        self._follow_materialization()

    def _run(self) -> None:
        is_settled = False
        while not self._stop.is_set():
            moves = self._moves()
            try:
                self.look()
            except Exception:
                # the watcher outlives any surprise: without it the service would answer from an old model for ever
                log.exception(
                    "looking for the champion failed; trying again in %g s", self._settings.serving.poll_seconds
                )
            if self.in_use or "registry" not in self._warnings:
                self.looked.set()
            if self.in_use and not is_settled:
                # What libraries hold lives as long as the process; walking through it in each full collection would
                # hold up requests. A model needs no collection to be freed: nothing in it refers back.
                gc.collect()
                gc.freeze()
                is_settled = True
            self._keep_ready()
            self._wait(moves)

    def _wait(self, moves: int | None) -> None:
        """Until the next look: the poll's seconds, or less when this machine's ledger has changed since `moves`."""
        until = time.monotonic() + self._settings.serving.poll_seconds
        while (left := until - time.monotonic()) > 0 and self._moves() == moves:
            if self._stop.wait(min(left, NOTICE_SECONDS)):
                return

    def _moves(self) -> int | None:
        """When the ledger last changed; none where there is none."""
        try:
            return self._ledger.stat().st_mtime_ns
        except OSError:
            return None

    def _keep_ready(self) -> None:
        """Bring the last champions' bundles to this machine's disk, so that a rollback has nothing to fetch."""
        if self.in_use is None or self._ready_for == self.in_use.version:
            return
        if self._keeping or time.monotonic() < self._ready_again:
            return
        self._keeping = True
        arguments = (self.in_use.version,)
        threading.Thread(target=self._fetch_recent, args=arguments, name="keep-ready", daemon=True).start()

    def _fetch_recent(self, version: str) -> None:
        """Fetch them beside this version in use, and remove what the retention rule has collected since."""
        from evensong.registry import aliases, bundle, retention

        failed: Exception | None = None
        try:
            for recent in aliases.recent_champions(self._settings, self._settings.registry.keep_champions):
                try:
                    bundle.fetch(self._settings, recent)
                except Exception as error:  # the others are worth having all the same
                    failed = failed or error
            retention.forget(self._settings, keep={version})
        except Exception as error:
            failed = failed or error
        if failed is None:
            self._ready_for, self._ready_pause = version, RETRY_SECONDS
        else:
            log.warning(
                "the last champions cannot all be kept on this disk (%s); trying again in %g s, and a rollback "
                "fetches what is missing",
                _first_line(failed),
                self._ready_pause,
            )
            self._ready_again = time.monotonic() + self._ready_pause
            self._ready_pause = min(self._ready_pause * 2, MAX_RETRY_SECONDS)
        self._keeping = False

    # ------------------------------------------------------------ the alias

    def _follow_alias(self) -> None:
        try:
            champion = self._registry.answer()
        except Exception as error:
            from evensong.registry.tracking import how_to_start

            self._metrics.registry_errors.inc()
            going_on = f"version {self.in_use.version}" if self.in_use else "the last good version, if one is cached,"
            self._warn(
                "registry",
                f"the registry cannot be asked ({_first_line(error)}); {going_on} goes on answering; "
                f"{how_to_start(self._settings)}",
            )
            if self.in_use is None:
                self._load_last_good()
            return
        self._clear("registry")
        if champion is None:
            self._warn(
                "alias",
                "no version has the alias `champion`; run `evensong nightly --as-of DATE`, "
                "or `evensong registry promote VERSION --reason WHY`",
            )
            return
        self._clear("alias")
        version = str(champion.version)
        if self.in_use and self.in_use.version == version:
            self._failed = None
            self._clear("bundle")
            return
        if not self._is_time_to_try(version):
            return
        try:
            self._swap(self._load(version))
        except Exception as error:
            self._refuse(version, error)
            if self.in_use is None:
                self._load_last_good()
            return
        self._failed = None
        for key in ("bundle", "last_good"):
            self._clear(key)

    def _ask_registry(self) -> ModelVersion | None:
        from evensong.registry import aliases

        return aliases.champion(self._settings)

    def _is_time_to_try(self, version: str) -> bool:
        return self._failed is None or self._failed[0] != version or time.monotonic() >= self._failed[1]

    def _refuse(self, version: str, error: Exception) -> None:
        pause = RETRY_SECONDS
        if self._failed and self._failed[0] == version:
            pause = min(self._failed[2] * 2, MAX_RETRY_SECONDS)
        self._failed = (version, time.monotonic() + pause, pause)
        reason = "corrupt" if isinstance(error, BundleError) else "unloadable"
        self._metrics.swap_failures.labels(reason).inc()
        going_on = f"version {self.in_use.version} goes on answering" if self.in_use else "nothing else is loaded"
        self._warn(
            "bundle",
            f"champion version {version} cannot be taken into use ({_first_line(error)}); {going_on}; "
            "run `evensong registry rollback`, make another version champion with `evensong registry promote VERSION "
            "--reason WHY`, or run the night again",
            error if not isinstance(error, EvensongError) else None,
        )

    def _load_last_good(self) -> None:
        """Answer from what answered before the last restart, out of the local cache."""
        from evensong.registry import bundle

        path = self._last_good_path()
        try:
            version = str(json.loads(path.read_bytes())["version"])
            directory = bundle.cached(self._settings, version)
            if directory is None:
                raise BundleError(f"{path}: names version {version}, which is not in the local cache any more")
            self._swap(self._load_from(directory, version))
        except FileNotFoundError:
            return
        except Exception as error:
            self._warn(
                "last_good",
                f"the version that answered last cannot be loaded ({_first_line(error)}); start the registry, "
                "or run `evensong registry rollback`",
            )
            return
        self._clear("last_good")

    def _load(self, version: str) -> InUse:
        from evensong.registry import bundle

        return self._load_from(bundle.fetch(self._settings, version), version)

    def _load_from(self, directory: Path, version: str) -> InUse:
        from evensong.features.shop_columns import check_read
        from evensong.recommender.funnel import Recommender
        from evensong.registry import bundle

        manifest = bundle.read_manifest(directory)
        if _features_of(manifest) is None:
            log.warning("version %s does not say which features it was trained on; they cannot be checked", version)
        self._check_features(_features_of(manifest), self._materialized())
        recommender = Recommender.load(directory)
        check_read(recommender.reads, self._settings.features)
        new = InUse(
            name=self._settings.registry.model_name,
            version=version,
            as_of=manifest.get("as_of"),
            loaded_at=datetime.now(UTC),
            recommender=recommender,
            items=None,
            item_features=None,
            positions={item_id: position for position, item_id in enumerate(recommender.item_ids)},
            titles=_titles(directory),
            popularity=recommender.popularity,
            materialized=None,
            features=_features_of(manifest),
        )
        new = self._with_items(new) or new
        self._smoke(new)
        return new

    def _check_features(self, features: Mapping[str, Any] | None, marker: Materialized | None) -> None:
        """Refuse a bundle that was trained on other features than the store holds.

        The store's marker says what filled it; where it does not, this code's own dictionary counts. A bundle of a
        release that recorded no features is taken as it is.

        Raises:
            BundleError: a feature is not served, or is defined differently.
        """
        from evensong.features.dictionary import build_dictionary, check_served

        if features is not None:
            served = marker.features if marker is not None else None
            check_served(features, served if served is not None else build_dictionary(self._settings))

    def _smoke(self, new: InUse) -> None:
        """A first request, of nobody and of a user with a history, must give finite scores."""
        from evensong.serving.recommend import without_features

        now = datetime.now(UTC)
        nobody = without_features("smoke")
        history = nobody.with_columns(
            recent_item_ids=pl.Series([list(new.recommender.item_ids[:3])], dtype=pl.List(pl.String)),
        )
        if new.items is None:
            return
        for users in (nobody, history):
            answer = new.recommender.recommend(users, new.items, now=now, k=self._settings.serving.default_k)
            if answer.is_empty() or not all(math.isfinite(score) for score in answer["score"]):
                raise BundleError(
                    f"version {new.version}: expected items with finite scores from a first request, "
                    f"came {answer.height} items; train the night again"
                )

    def _swap(self, new: InUse) -> None:
        old, self.in_use = self.in_use, new
        self._metrics.model_began(
            new.name, new.version, new.as_of, before=(old.name, old.version, old.as_of) if old else None
        )
        log.info("version %s answers now%s", new.version, f" in place of {old.version}" if old else "")
        storage.write_json(str(self._last_good_path()), {"version": new.version})

    def _last_good_path(self) -> Path:
        return Path(self._settings.place("serving", "last_good.json"))

    # ------------------------------------------------------------ features

    def _open_features(self) -> None:
        if self.features is not None:
            return
        from evensong.features.online import OnlineFeatures

        try:
            self.features = OnlineFeatures(self._settings)
            self._clear("features")
        except Exception as error:
            self._metrics.feature_errors.labels("open").inc()
            self._warn(
                "features",
                f"the online store cannot be opened ({_first_line(error)}); popular items are answered; "
                "start it, or run `evensong nightly --as-of DATE`",
            )

    def _follow_materialization(self) -> None:
        newest = self._materialized()
        if newest:
            self._metrics.features_timestamp.set(newest.as_of.timestamp())
            self._metrics.staleness.set((datetime.now(UTC) - newest.as_of).total_seconds())
        current = self.in_use
        if current and (current.items is None or current.materialized != newest):
            self.in_use = self._with_items(current) or current
        self.people.refresh(newest)

    def _materialized(self) -> Materialized | None:
        """The last materialization; while its marker cannot be read, the one known before."""
        try:
            self._newest = self._marker.answer()
        except Exception as error:
            self._warn("marker", f"the last materialization cannot be read ({_first_line(error)}); is the lake there?")
        else:
            self._clear("marker")
        return self._newest

    def _with_items(self, model: InUse) -> InUse | None:
        """The model with item features as the online store has them now, or none when they cannot be read.

        Where the store has been filled by other definitions since, the model keeps the items that it knows, and goes
        back to popular items until a model of these definitions is champion, or the store holds the old ones again.
        """
        if self.features is None:
            return None
        # before the read: a materialization that ends in between is then seen as new
        marker = self._materialized()
        try:
            self._check_features(model.features, marker)
        except BundleError as error:
            self._warn(
                "redefined",
                f"version {model.version} is answered with popular items: {error}",
            )
            return dataclasses.replace(model, redefined=True, materialized=marker)
        self._clear("redefined")
        try:
            frame = self.features.items(list(model.recommender.item_ids))
        except Exception as error:
            self._metrics.feature_errors.labels("items").inc()
            going_on = "the older ones stay in use" if model.items is not None else "popular items are answered"
            self._warn(
                "items",
                f"item features cannot be read ({_first_line(error)}); {going_on}; "
                "start the online store, or run `evensong nightly --as-of DATE`",
            )
            return None
        items = model.recommender.prepare_items(frame)
        self._clear("items")
        self._metrics.item_refreshes.inc()
        return dataclasses.replace(model, items=items, item_features=frame, materialized=marker, redefined=False)

    # ------------------------------------------------------------ telling

    def _warn(self, key: str, message: str, error: Exception | None = None) -> None:
        """Log a trouble once, and keep it for /readyz until it is over."""
        if self._warnings.get(key) != message:
            log.error(message, exc_info=error)
        self._warnings = self._warnings | {key: message}

    def _clear(self, key: str) -> None:
        if key in self._warnings:
            log.info("over: %s", self._warnings[key])
            self._warnings = {name: text for name, text in self._warnings.items() if name != key}


def _features_of(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    features = manifest.get("features")
    return features if isinstance(features, dict) else None


def _titles(directory: Path) -> dict[str, tuple[str | None, str | None]]:
    items = pl.read_parquet(directory / "items.parquet", columns=["item_id", "title", "category_path"])
    return {item_id: (title, category) for item_id, title, category in items.iter_rows()}


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
