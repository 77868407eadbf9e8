"""The step that assembles the bundle: everything that a recommendation needs, in one directory with hashes."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from evensong.data import storage
from evensong.errors import StorageError
from evensong.features.dictionary import build_dictionary, for_manifest
from evensong.pipelines import evaluate, index, train
from evensong.registry import bundle
from evensong.settings import Settings
from evensong.types import Night


def assemble(
    settings: Settings,
    night: Night,
    training_set_uri: str,
    retriever_uri: str,
    ranker_uri: str,
    index_uri: str,
    evaluation_uri: str,
) -> str:
    """Write `bundle/` (docs/contracts.md) and return its URI.

    With `night.refit` the same recipe is first trained on everything up to `as_of`: the labels' windows move on by
    the holdout. The evaluation stays the one of the models that had not seen it.
    """
    if not storage.exists(evaluation_uri):
        raise StorageError(f"{evaluation_uri}: expected the evaluation, found none; run evaluate first")
    final = night.refit
    if final:
        retriever_uri = train.retriever(settings, night, training_set_uri, final=True)
        ranker_uri = train.ranker(settings, night, training_set_uri, retriever_uri, final=True)
        index_uri = index.build(settings, night, training_set_uri, retriever_uri, final=True)
    cutoff = train.cutoff_of(settings, night, final)
    items = train.read_items(training_set_uri, final)
    popularity = evaluate.popular(settings, training_set_uri, items, cutoff, final)
    meta = storage.read_json(storage.join(training_set_uri, "meta.json"))
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder, "bundle")
        for name, uri in (("retriever", retriever_uri), ("ranker", ranker_uri), ("index", index_uri)):
            source = storage.fetch_folder(uri, Path(folder, name))
            shutil.copytree(source, content / name, ignore=shutil.ignore_patterns(train.BASE))
        (content / "popularity.json").write_text(json.dumps(popularity.to_dict(), ensure_ascii=False) + "\n")
        items.write_parquet(content / "items.parquet")
        bundle.write_manifest(
            content,
            as_of=night.as_of.isoformat(),
            train_cutoff=cutoff.isoformat(),
            lake_versions=meta.get("lake_versions", {}),
            feature_service=meta["feature_service"],
            features=for_manifest(build_dictionary(settings), meta["feature_service"]),
            code_commit=bundle.code_commit(settings),
            libraries=bundle.library_versions(),
            seed=night.seed,
        )
        return storage.write_folder(content, settings.run_uri(night.run_id, "bundle"))
