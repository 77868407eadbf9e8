"""Titles as numbers: TF-IDF compressed to a few dimensions by a truncated singular value decomposition.

Weights are `(1 + ln tf) * (1 + ln((1 + N) / (1 + df)))`, rows of unit length (Manning, Raghavan and Schütze,
Introduction to Information Retrieval, §6.4); the compression is latent semantic analysis (Deerwester et al., 1990). The
sign of a singular vector is free: here its entry largest in size is positive, so the same titles give the same numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

_WORD = re.compile(r"\w+")
#: Up to this many entries the exact decomposition of the dense matrix is quicker than the iteration.
_DENSE = 250_000


def words(text: str | None) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower()) if text else []


@dataclass(frozen=True)
class TextVectors:
    """Fitted TF-IDF with its compression."""

    terms: list[str]
    """Sorted."""
    idf: NDArray[np.float32]
    """Per term."""
    components: NDArray[np.float32]
    """`[terms, dimension]`, orthonormal columns, largest singular value first; zeros where the texts span fewer."""

    @classmethod
    def fit(
        cls, texts: Sequence[str | None], *, dimension: int = 32, min_count: int = 2, max_terms: int = 50_000
    ) -> TextVectors:
        """Learn from texts, a null being an empty one.

        Args:
            min_count: a term must occur in so many texts.
            max_terms: of these, so many that occur in the most texts are kept.
        """
        documents = Counter(term for text in texts for term in set(words(text)))
        often = sorted((t for t, n in documents.items() if n >= min_count), key=lambda t: (-documents[t], t))
        terms = sorted(often[:max_terms])
        num_texts = sum(1 for text in texts if text)
        counts = np.array([documents[term] for term in terms], np.float64)
        idf = (1 + np.log((1 + num_texts) / (1 + counts))).astype(np.float32)
        unfinished = cls(terms, idf, np.zeros((len(terms), dimension), np.float32))
        return cls(terms, idf, _components(unfinished.weights(texts), dimension))

    @property
    def dimension(self) -> int:
        """Numbers a text."""
        return int(self.components.shape[1])

    def weights(self, texts: Sequence[str | None]) -> sparse.csr_array:
        """TF-IDF, `[texts, terms]`, rows of length one or zero."""
        index = {term: i for i, term in enumerate(self.terms)}
        rows: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        for row, text in enumerate(texts):
            counts = Counter(index[word] for word in words(text) if word in index)
            for column, count in sorted(counts.items()):
                rows.append(row)
                columns.append(column)
                values.append((1 + np.log(count)) * float(self.idf[column]))
        matrix = sparse.csr_array((values, (rows, columns)), shape=(len(texts), len(self.terms)), dtype=np.float64)
        length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
        return sparse.csr_array(sparse.diags_array(scale) @ matrix)

    def transform(self, texts: Sequence[str | None]) -> NDArray[np.float32]:
        """`[texts, dimension]`; an empty text, or one of unknown words, is all zeros."""
        distinct = list(dict.fromkeys(texts))
        vectors = (self.weights(distinct) @ self.components.astype(np.float64)).astype(np.float32)
        place = {text: i for i, text in enumerate(distinct)}
        return vectors[[place[text] for text in texts]].reshape(len(texts), self.dimension)

    def facts(self) -> dict[str, Any]:
        """The part of the fitted state that is JSON."""
        return {"terms": self.terms}

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The part of the fitted state that is numbers."""
        return {"idf": self.idf, "components": self.components}


def add_text_vectors(frame: pl.DataFrame, column: str, vectors: TextVectors, name: str) -> pl.DataFrame:
    """The frame with the column's vectors beside it, as a list of 32-bit floats."""
    found = vectors.transform(frame[column].to_list())
    return frame.with_columns(pl.Series(name, found.tolist(), dtype=pl.List(pl.Float32)))


def _components(weights: sparse.csr_array, dimension: int) -> NDArray[np.float32]:
    """The right singular vectors, `[terms, dimension]`, padded with zeros."""
    num_texts, num_terms = weights.shape
    found = min(dimension, num_texts, num_terms)
    padded = np.zeros((num_terms, dimension), np.float32)
    if not found or not weights.nnz:
        return padded
    if num_texts * num_terms <= _DENSE or found >= min(num_texts, num_terms):
        _, sizes, right = np.linalg.svd(weights.toarray(), full_matrices=False)
    else:
        start = np.ones(min(num_texts, num_terms)) / np.sqrt(min(num_texts, num_terms))
        _, sizes, right = svds(weights, k=found, v0=start, rng=np.random.default_rng(0))
    order = np.argsort(-sizes, kind="stable")[:found]
    # A direction without any weight is arbitrary: it would tell nothing, and not the same nothing everywhere.
    order = order[sizes[order] > sizes.max() * 1e-10]
    vectors = right[order]
    signs = np.sign(vectors[np.arange(len(order)), np.abs(vectors).argmax(axis=1)])
    padded[:, : len(order)] = (vectors * signs[:, None]).T
    return padded
