"""Titles become vectors in which like titles lie close, the same ones on every run."""

import numpy as np
import polars as pl
import pytest

from evensong.features.text import TextVectors, add_text_vectors

TITLES = ["red wool scarf", "blue wool scarf", "green wool scarf", "steel kitchen knife", "small kitchen knife", None]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_like_titles_lie_close_and_unlike_ones_far() -> None:
    vectors = TextVectors.fit(TITLES, dimension=2).transform(TITLES)
    assert cosine(vectors[0], vectors[1]) > 0.9
    assert abs(cosine(vectors[0], vectors[3])) < 0.1


def test_full_rank_keeps_every_angle() -> None:
    fitted = TextVectors.fit(TITLES[:5], dimension=5, min_count=1)
    weights = fitted.weights(TITLES[:5]).toarray()
    vectors = fitted.transform(TITLES[:5])
    assert np.allclose(vectors @ vectors.T, weights @ weights.T, atol=1e-5)


def test_missing_and_unknown_titles_are_zeros_and_dimensions_beyond_the_rank_too() -> None:
    fitted = TextVectors.fit(TITLES, dimension=32)
    vectors = fitted.transform([None, "", "zzz", "wool"])
    assert vectors.shape == (4, 32)
    assert not vectors[:3].any()
    assert vectors[3].any()
    assert not vectors[:, 5:].any()


def test_no_titles_at_all_give_zeros() -> None:
    assert TextVectors.fit([None, ""], dimension=4).transform(["wool"]).tolist() == [[0.0] * 4]
    assert TextVectors.fit([], dimension=4).transform([]).shape == (0, 4)


@pytest.mark.parametrize("num_titles", [40, 3000])
def test_the_same_titles_give_the_same_bytes_in_either_method(num_titles: int) -> None:
    draw = np.random.default_rng(3)
    titles: list[str | None] = [" ".join(f"w{i}" for i in draw.zipf(1.3, 6) % 400) for _ in range(num_titles)]
    first, second = (TextVectors.fit(titles, dimension=8) for _ in range(2))
    assert first.components.tobytes() == second.components.tobytes()
    largest = np.abs(first.components).argmax(axis=0)
    assert (first.components[largest, np.arange(8)] > 0).all()
    assert np.allclose(first.components.T @ first.components, np.eye(8), atol=1e-4)


def test_iteration_agrees_with_the_exact_decomposition() -> None:
    draw = np.random.default_rng(5)
    titles: list[str | None] = [" ".join(f"w{i}" for i in draw.zipf(1.3, 6) % 300) for _ in range(2000)]
    fitted = TextVectors.fit(titles, dimension=4)
    weights = fitted.weights(titles).toarray()
    assert weights.size > 250_000
    _, _, right = np.linalg.svd(weights, full_matrices=False)
    assert np.allclose(np.abs(right[:4] @ fitted.components), np.eye(4), atol=1e-3)


def test_vectors_stand_beside_their_titles() -> None:
    items = pl.DataFrame({"item_id": ["a", "b"], "title": ["wool", None]})
    found = add_text_vectors(items, "title", TextVectors.fit(TITLES, dimension=3), "title_vector")
    assert found.columns == ["item_id", "title", "title_vector"]
    assert found["title_vector"].list.len().to_list() == [3, 3]
