"""What every item index must do, whatever its kind."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from evensong.errors import BundleError
from evensong.retrieval import exact
from evensong.retrieval.faiss_index import ItemIndex, Kind, kind_for
from evensong.settings import IndexSettings

KINDS: list[Kind] = ["flat", "quantized", "ivf", "hnsw"]


def vectors(count: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def ids(count: int) -> list[str]:
    return [f"i{n:05d}" for n in range(count)]


def built(kind: Kind, count: int = 2000) -> ItemIndex:
    return ItemIndex.build(vectors(count), ids(count), IndexSettings(kind=kind, ivf_probe_share=0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_nearly_what_exact_search_finds(kind: Kind) -> None:
    queries, items = vectors(50, seed=1), vectors(2000)
    scores, rows = built(kind).search(queries, 20)
    exact_scores, _ = exact.search(queries, items, 20)
    assert exact.index_recall(rows, exact_scores, queries, items) >= (1.0 if kind == "flat" else 0.9)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_answers_as_single_queries_do(kind: Kind) -> None:
    index, queries = built(kind), vectors(7, seed=2)
    together = index.search(queries, 5)
    for row, query in enumerate(queries):
        scores, rows = index.search(query[None], 5)
        assert np.array_equal(scores[0], together[0][row])
        assert np.array_equal(rows[0], together[1][row])


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_from_its_folder_and_gives_its_vectors(kind: Kind, tmp_path: Path) -> None:
    index, queries = built(kind), vectors(3, seed=3)
    index.save(tmp_path, index_recall=0.99)
    back = ItemIndex.load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "item_ids.json", "items.faiss"]
    assert back.item_ids == index.item_ids
    assert np.array_equal(back.search(queries, 9)[1], index.search(queries, 9)[1])
    assert np.array_equal(back.vectors(), index.vectors())
    assert np.allclose(back.vectors(), vectors(2000), atol=0.01 if kind == "quantized" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_building_it_again_gives_the_same_bytes(kind: Kind, tmp_path: Path) -> None:
    for name in ("one", "two"):
        built(kind).save(tmp_path / name)
    assert (tmp_path / "one/items.faiss").read_bytes() == (tmp_path / "two/items.faiss").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_catalogue_smaller_than_k_is_answered_whole(kind: Kind) -> None:
    index = ItemIndex.build(vectors(3), ids(3), IndexSettings(kind=kind))
    assert sorted(index.search(vectors(1, seed=4), 50)[1][0].tolist()) == [0, 1, 2]


def test_ids_out_of_order_or_twice_are_refused() -> None:
    for wrong in (["b", "a"], ["a", "a"]):
        with pytest.raises(ValueError, match="ascending"):
            ItemIndex.build(vectors(2), wrong, IndexSettings())


def test_ids_that_do_not_fit_the_vectors_are_refused(tmp_path: Path) -> None:
    built("flat", 10).save(tmp_path)
    (tmp_path / "item_ids.json").write_text('["only one"]')
    with pytest.raises(BundleError, match="10 vectors came with 1"):
        ItemIndex.load(tmp_path)


@pytest.mark.parametrize("name", ["items.faiss", "item_ids.json", "index.json"])
def test_a_damaged_or_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    built("flat", 10).save(tmp_path)
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(BundleError, match="build the index again"):
        ItemIndex.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BundleError, match="build the index again"):
        ItemIndex.load(tmp_path)


def test_small_catalogues_are_searched_exactly() -> None:
    settings = IndexSettings(exact_up_to=100, approximate="ivf")
    assert [kind_for(count, settings) for count in (100, 101)] == ["flat", "ivf"]
    assert kind_for(5, IndexSettings(kind="hnsw")) == "hnsw"


@hypothesis_settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 1000))
def test_exact_search_agrees_with_sorting(count: int, k: int, seed: int) -> None:
    items = np.random.default_rng(seed).integers(-2, 3, size=(count, 3)).astype(np.float32)
    query = np.random.default_rng(seed + 1).integers(-2, 3, size=(1, 3)).astype(np.float32)
    scores, rows = exact.search(query, items, k)
    products = [float(query[0] @ item) for item in items]
    expected = sorted(range(count), key=lambda row: (-products[row], row))[:k]
    assert rows[0].tolist() == expected
    assert scores[0].tolist() == [products[row] for row in expected]


def test_index_recall_counts_what_is_missing_and_forgives_ties() -> None:
    items = np.array([[1.0], [0.5], [0.5], [0.1]], np.float32)
    query = np.array([[1.0]], np.float32)
    exact_scores, _ = exact.search(query, items, 2)
    assert exact.index_recall(np.array([[0, 2]]), exact_scores, query, items) == 1.0
    assert exact.index_recall(np.array([[0, 3]]), exact_scores, query, items) == 0.5
    assert exact.index_recall(np.array([[0, -1]]), exact_scores, query, items) == 0.5
