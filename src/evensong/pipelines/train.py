"""The steps that train the retriever and the ranker.

The ranker must learn how much a retriever's score is worth on labels that the retriever has not seen. So the labels are
cut in time: a *base* retriever learns from the older ones, the ranker learns from the newer ones with the base's
candidates and scores, and the retriever that is indexed continues from the base over all of them
(docs/guides/models.md has the figures).
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from evensong.data import storage
from evensong.errors import NothingToLearnError
from evensong.features.model_columns import ModelColumns, user_sources
from evensong.features.shop_columns import declared
from evensong.models.inputs import USER_FEATURES, Vocabularies
from evensong.models.saved import TowerWeights, load_towers, save_ranker, save_towers
from evensong.pipelines.training_set import holdout_start
from evensong.settings import Settings
from evensong.types import Frame, Night

if TYPE_CHECKING:
    from evensong.training.checkpoints import Checkpoints
    from evensong.training.retriever import RetrieverData

log = logging.getLogger(__name__)

#: In the run's folder, which version the training began with.
START = "trained_from.json"
#: Below `retriever/`, the retriever that the ranker learns with; it does not go into the bundle.
BASE = "base"
#: The ranker's labels reach back until they are at least so many, or this share of all.
MIN_RANKER_LABELS = 20_000
MAX_RANKER_SHARE = 0.25
#: The continued retriever passes over all labels this often, against the recipe's epochs.
CONTINUED_SHARE = 0.4

LABEL_COLUMNS = ("user_id", "item_id", "event_timestamp", "event_type", "part")


def retriever(settings: Settings, night: Night, training_set_uri: str, final: bool = False) -> str:
    """Train the two-tower retriever and return the URI of `retriever/` (`final/retriever/` for the refit).

    Args:
        settings: the recipe.
        night: the run; with `train_from` champion the weights begin as the champion's, with a number as that version's.
        training_set_uri: what `training_set.build` wrote.
        final: learn from everything up to `as_of`, not only up to the holdout.

    Raises:
        NothingToLearnError: no label has any history before it.
        DivergedError: the loss is no number.
    """
    from evensong.training import retriever as training

    examples, items = read_labels(settings, training_set_uri, final), read_items(training_set_uri, final)
    cutoff = ranker_start(settings, night, examples, final)
    older = examples.filter(pl.col("event_timestamp") < cutoff)
    target = place(settings, night, "retriever", final)
    hide_seen = settings.serving.filter == "seen"
    epochs = settings.retriever.epochs
    marks: list[str] = []
    curves: dict[str, list[float]] = {}

    champion = _start(settings, night, final)
    columns = _columns(settings, older if len(older) else examples, items, champion[0] if champion else None)

    def fit(labels: Frame, name: str, start: TowerWeights | None, num_epochs: int) -> TowerWeights:
        vocabularies = Vocabularies.fit(
            items, labels["item_id"], settings.features.history_length, settings.features.num_top_categories, columns
        )
        data = training.prepare(labels, items, vocabularies, hide_seen)
        checkpoints = _checkpoints(settings, night, f"{name}-final" if final else name, data, start, num_epochs)
        marks.append(checkpoints.uri)
        return training.train(
            data,
            vocabularies,
            settings.retriever,
            seed=night.seed,
            num_threads=settings.training.num_threads,
            num_epochs=num_epochs,
            start=start,
            checkpoints=checkpoints,
            losses=curves.setdefault(f"{name} loss", []),
        )

    unseen = champion is not None and champion[1] <= cutoff
    try:
        base = fit(older, "retriever-base", champion[0] if champion and unseen else None, epochs)
    except NothingToLearnError:
        # only the newest labels have a history before them: the ranker then learns with scores that have seen them
        base = fit(examples, "retriever-base", champion[0] if champion and unseen else None, epochs)
    start = champion[0] if champion and not unseen else base
    weights = fit(examples, "retriever", start, max(1, round(CONTINUED_SHARE * epochs)))
    with tempfile.TemporaryDirectory() as folder:
        save_towers(Path(folder), weights)
        save_towers(Path(folder, BASE), base)
        storage.write_folder(Path(folder), target)
    _keep_curves(settings, night, "retriever", final, curves)
    for mark in marks:
        storage.remove(mark)
    return target


def ranker(settings: Settings, night: Night, training_set_uri: str, retriever_uri: str, final: bool = False) -> str:
    """Train the ranker on the newer labels with the base retriever and return the URI of `ranker/`.

    Args:
        settings: the recipe.
        night: the run.
        training_set_uri: what `training_set.build` wrote.
        retriever_uri: what `retriever` wrote, with the same `final`.
        final: learn from everything up to `as_of`.
    """
    from evensong.features.offline import FeatureReader
    from evensong.features.store import RECOMMENDER
    from evensong.training import ranker as training

    reader = FeatureReader(settings)

    def join(entities: Frame) -> Frame:
        return reader.join(entities, RECOMMENDER, of="item_id")

    target = place(settings, night, "ranker", final)
    with tempfile.TemporaryDirectory() as folder:
        base = towers(settings, storage.fetch_folder(storage.join(retriever_uri, BASE), Path(folder, "base")))
        examples, items = read_labels(settings, training_set_uri, final), read_items(training_set_uri, final)
        start = ranker_start(settings, night, examples, final)
        slates = training.slates_of(examples, items, base, join, start, settings, seed=night.seed)
        weights, losses = training.train(slates, settings, seed=night.seed)
        log.info("ranker: %d slates, validation loss %s", len(slates), [round(loss, 4) for loss in losses])
        save_ranker(Path(folder, "ranker"), weights)
        storage.write_folder(Path(folder, "ranker"), target)
    _keep_curves(settings, night, "ranker", final, {"ranker validation loss": losses})
    return target


def place(settings: Settings, night: Night, name: str, final: bool) -> str:
    """Where a step of the training, or of the refit, leaves what it makes."""
    return settings.run_uri(night.run_id, *(["final"] if final else []), name)


def _keep_curves(settings: Settings, night: Night, name: str, final: bool, curves: dict[str, list[float]]) -> None:
    """For the dossier, beside the weights and never in the bundle: a run that was killed knows its last epochs only."""
    storage.write_json(settings.run_uri(night.run_id, "curves", f"{name}{'-final' if final else ''}.json"), curves)


def read_labels(settings: Settings, training_set_uri: str, final: bool) -> Frame:
    """The labels that may be learned from, oldest first, with the features that the towers read."""
    columns = dict.fromkeys([*LABEL_COLUMNS, *USER_FEATURES, *user_sources(declared(settings.features))])
    uri = storage.join(training_set_uri, "examples.parquet")
    frame = pl.scan_parquet(uri, storage_options=storage.storage_options(uri))
    there = frame.collect_schema().names()
    frame = frame.select(name for name in columns if name in there)
    return (frame if final else frame.filter(pl.col("part") != "holdout")).collect()


def read_items(training_set_uri: str, final: bool) -> Frame:
    """The catalogue at the cutoff, by id."""
    name = "items_final.parquet" if final else "items_train.parquet"
    return storage.read_frame(storage.join(training_set_uri, name)).sort("item_id")


def cutoff_of(settings: Settings, night: Night, final: bool) -> datetime:
    """The moment up to which is learned."""
    return night.as_of if final else holdout_start(settings, night)


def ranker_start(settings: Settings, night: Night, examples: Frame, final: bool) -> datetime:
    """Where the ranker's labels begin: `split.ranker_days` before the cutoff, earlier when those are few.

    A ranker of a handful of labels learns nothing, and a quiet week must not decide that. So its labels reach back
    until they are `MIN_RANKER_LABELS` or `MAX_RANKER_SHARE` of all, and never take more than half of all.
    """
    times = examples["event_timestamp"].sort()
    wanted = min(MIN_RANKER_LABELS, int(MAX_RANKER_SHARE * len(times)))
    by_days = cutoff_of(settings, night, final) - timedelta(days=settings.split.ranker_days)
    if wanted == 0:
        return by_days
    by_count, half = times[len(times) - wanted], times[len(times) // 2]
    assert isinstance(by_count, datetime)
    assert isinstance(half, datetime)
    return max(min(by_days, by_count), half)


def champion_models(settings: Settings, version: str, moment: datetime) -> tuple[Path, datetime]:
    """The models of a champion that learned nothing after `moment`, and the moment up to which they learned.

    They are the bundle itself, or, where its refit reaches beyond, the models of before the refit. Where those were not
    kept, it is the bundle, and its later moment says so; so does that of models whose own holdout was a shorter one.
    """
    from evensong.registry import bundle

    directory = bundle.fetch(settings, version)
    cutoff = datetime.fromisoformat(bundle.read_manifest(directory)["train_cutoff"])
    if cutoff > moment and (judged := bundle.fetch_judged(settings, version)) is not None:
        return judged, datetime.fromisoformat(bundle.read_manifest(judged)["train_cutoff"])
    return directory, cutoff


def _columns(settings: Settings, labels: Frame, items: Frame, champion: TowerWeights | None) -> ModelColumns:
    """The declared columns, fitted on the older labels; the champion's own where the night continues from it."""
    wanted = declared(settings.features)
    if champion is not None and champion.vocabularies.columns.same_as(wanted):
        return champion.vocabularies.columns
    return ModelColumns.fit(
        wanted,
        labels,
        items,
        cache=_encoders(settings),
        device=settings.features.text_device,
    )


def towers(settings: Settings, folder: Path) -> TowerWeights:
    """The towers of a folder, with the encoders of their columns where the settings have them run."""
    return load_towers(folder, cache=_encoders(settings), device=settings.features.text_device)


def _encoders(settings: Settings) -> str:
    """Where encoders keep the vectors of what they have seen."""
    return storage.join(settings.artifacts, "encoders")


def trained_from(settings: Settings, night: Night) -> str | None:
    """The version whose weights the night's training began with; none where they began at random."""
    place = settings.run_uri(night.run_id, START)
    version: str | None = storage.read_json(place)["version"] if storage.exists(place) else None
    return version


def _start(settings: Settings, night: Night, final: bool) -> tuple[TowerWeights, datetime] | None:
    """The towers that the night continues from, and the moment up to which they learned.

    The refit continues from the version that the judged model did, whatever became of the champion since.
    """
    version = trained_from(settings, night) if final else _chosen(settings, night)
    if not final:
        storage.write_json(settings.run_uri(night.run_id, START), {"version": version})
    if version is None:
        return None
    directory, cutoff = champion_models(settings, version, cutoff_of(settings, night, final))
    return towers(settings, directory / "retriever"), cutoff


def _chosen(settings: Settings, night: Night) -> str | None:
    if night.train_from == "scratch":
        return None
    if night.train_from != "champion":
        return night.train_from
    from evensong.pipelines import recipe

    champion = recipe.rival(settings, night)
    if champion is None:
        log.warning("train_from is champion, but nobody made one before this run; the weights begin at random")
        return None
    return champion.version


def _checkpoints(
    settings: Settings, night: Night, name: str, data: RetrieverData, start: TowerWeights | None, num_epochs: int
) -> Checkpoints:
    """Where the state goes; data, recipe and first weights are what makes it the same training."""
    from evensong.training.checkpoints import Checkpoints

    mark = hashlib.blake2b(digest_size=16)
    for part in (settings.retriever, settings.training):
        mark.update(part.model_dump_json().encode())
    mark.update(f"{night.seed} {num_epochs} {start is None}".encode())
    arrays = [data.user_R, data.item_R, data.seconds_R, data.users.history_BL, data.items.id_N, data.items.word_NW]
    arrays += [data.users.index_BI, data.users.value_BV, data.items.index_NI, data.items.value_NV]
    arrays += list(start.tensors.values()) if start else []
    for array in arrays:
        mark.update(np.ascontiguousarray(array).data)
    return Checkpoints(settings.run_uri(night.run_id, "checkpoints", f"{name}.safetensors"), mark.hexdigest())
