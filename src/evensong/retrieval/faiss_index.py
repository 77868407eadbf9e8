"""Owns the item index: FAISS behind four verbs, build, search, save, load.

Legend: Q queries, N items, D dimension, K results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from evensong.errors import BundleError
from evensong.settings import IndexSettings

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Kind = Literal["flat", "quantized", "ivf", "hnsw"]


class ItemIndex:
    """Item vectors by inner product, and which item each row is. Rows are in the order of the ids, ascending."""

    def __init__(self, index: Any, item_ids: Sequence[str], kind: Kind) -> None:
        if index.ntotal != len(item_ids):
            raise BundleError(
                f"an index of {index.ntotal} vectors came with {len(item_ids)} item ids; build the index again"
            )
        self._index = index
        self.item_ids = list(item_ids)
        self.kind: Kind = kind

    @classmethod
    def build(cls, vectors_ND: Floats, item_ids: Sequence[str], settings: IndexSettings) -> ItemIndex:
        """Index the vectors, with the kind that the settings name or that the catalogue's size asks for."""
        if list(item_ids) != sorted(set(item_ids)):
            raise ValueError("item ids must be distinct and ascending, so that ties are broken by id")
        kind = kind_for(len(item_ids), settings)
        vectors = np.ascontiguousarray(vectors_ND, np.float32)
        # one thread: k-means and graph building sum in one order, so the same night gives the same bytes
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            index = _empty(kind, vectors.shape, settings)
            if not index.is_trained:
                index.train(vectors)
            index.add(vectors)
        finally:
            faiss.omp_set_num_threads(threads)
        return cls(index, item_ids, kind)

    def __len__(self) -> int:
        return len(self.item_ids)

    def search(self, queries_QD: Floats, k: int) -> tuple[Floats, Ints]:
        """Scores and rows (Q, K), best first, K the smaller of `k` and N; row -1 where the index found fewer.

        Queries are asked one by one, so that a batch gives the very bits of single requests.
        """
        k = min(k, len(self.item_ids))
        if k == 0 or len(queries_QD) == 0:
            return np.zeros((len(queries_QD), k), np.float32), np.zeros((len(queries_QD), k), np.int64)
        answers = [self._index.search(np.ascontiguousarray(query[None], np.float32), k) for query in queries_QD]
        return np.concatenate([scores for scores, _ in answers]), np.concatenate([rows for _, rows in answers])

    def vectors(self) -> Floats:
        """All vectors (N, D), in the order of the rows."""
        if self.kind == "ivf":
            self._index.make_direct_map()
        vectors: Floats = self._index.reconstruct_n(0, len(self.item_ids))
        return vectors

    def save(self, folder: Path, **facts: float) -> None:
        """Write `items.faiss`, `item_ids.json` and `index.json` (the kind and the `facts`, such as `index_recall`)."""
        folder.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self._index, str(folder / "items.faiss"))
        (folder / "item_ids.json").write_text(json.dumps(self.item_ids, ensure_ascii=False) + "\n", encoding="utf-8")
        described = {"kind": self.kind, "num_items": len(self.item_ids), "dimension": self._index.d, **facts}
        (folder / "index.json").write_text(json.dumps(described, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ItemIndex:
        """Read what `save` wrote.

        Raises:
            BundleError: a file is missing, damaged, or does not fit the others.
        """
        try:
            item_ids = json.loads((folder / "item_ids.json").read_bytes())
            kind = json.loads((folder / "index.json").read_bytes())["kind"]
            index = faiss.read_index(str(folder / "items.faiss"))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise BundleError(f"{folder}: expected an item index, got {error}; build the index again") from error
        return cls(index, item_ids, kind)


def kind_for(num_items: int, settings: IndexSettings) -> Kind:
    """The kind of index for a catalogue: exact up to `exact_up_to` items, then `approximate`."""
    if settings.kind != "auto":
        return settings.kind
    return "flat" if num_items <= settings.exact_up_to else settings.approximate


def _empty(kind: Kind, shape: tuple[int, ...], settings: IndexSettings) -> Any:
    num_items, dimension = shape
    index: Any
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 2 * settings.hnsw_search
        index.hnsw.efSearch = settings.hnsw_search
        return index
    if kind == "ivf":
        # about 4 * sqrt(N) lists, the rule of thumb of FAISS's guidelines, and 39 vectors a list to train on
        num_lists = max(1, min(int(4 * num_items**0.5), num_items // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, num_lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(1, round(settings.ivf_probe_share * num_lists))
        return index
    if kind == "quantized":
        # a byte a number: a quarter of the memory
        return faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    return faiss.IndexFlatIP(dimension)
