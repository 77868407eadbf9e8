"""Owns the fitted mapping from tokens (ids, categories, words) to rows of an embedding table."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
#: Above this many tokens the polars route is quicker than a dictionary.
_MANY = 10_000


class Vocabulary:
    """Tokens to indices: 0 is "nothing", then `num_hashed` rows shared by unknown tokens, then one row a known token.

    An unknown token goes to the row `1 + crc32(token) mod num_hashed`, so it always meets the same one, in any process.
    """

    def __init__(self, tokens: Sequence[str], num_hashed: int) -> None:
        if num_hashed < 1 or len(set(tokens)) != len(tokens):
            raise ValueError(f"a vocabulary needs distinct tokens and num_hashed >= 1, got num_hashed={num_hashed}")
        self.tokens = list(tokens)
        self.num_hashed = num_hashed
        self._index = {token: num_hashed + 1 + i for i, token in enumerate(self.tokens)}

    @classmethod
    def fit(
        cls, tokens: Iterable[str | None], num_hashed: int, min_count: int = 1, max_size: int | None = None
    ) -> Vocabulary:
        """Keep the tokens that occur at least `min_count` times, at most `max_size` of them, the most frequent ones."""
        counts = Counter(token for token in tokens if token)
        kept = sorted((t for t, n in counts.items() if n >= min_count), key=lambda t: (-counts[t], t))[:max_size]
        return cls(sorted(kept), num_hashed)

    def __len__(self) -> int:
        """Rows that an embedding table of this vocabulary needs."""
        return 1 + self.num_hashed + len(self.tokens)

    def index(self, token: str | None) -> int:
        """The row of one token; 0 for none."""
        if not token:
            return 0
        known = self._index.get(token)
        return known if known is not None else 1 + zlib.crc32(token.encode()) % self.num_hashed

    def indices(self, tokens: Sequence[str | None]) -> NDArray[np.int32]:
        """The rows of many tokens."""
        return np.fromiter((self.index(token) for token in tokens), np.int32, len(tokens))

    def known_index(self, token: str | None) -> int:
        """The row of one token, 0 where it is not known."""
        return self._index.get(token, 0) if token else 0

    def known(self, tokens: pl.Series) -> NDArray[np.int32]:
        """The rows of many tokens, with 0 for nulls and for every token that is not known."""
        if len(tokens) < _MANY:
            get = self._index.get
            return np.fromiter((get(token, 0) for token in tokens.to_list()), np.int32, len(tokens))
        codes = tokens.cast(pl.Enum(self.tokens), strict=False).to_physical().cast(pl.Int64)
        return (codes + (1 + self.num_hashed)).fill_null(0).to_numpy().astype(np.int32)

    def rows_of(self, other: Vocabulary) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the rows that mean the same stand here and in `other`: pairs (row here, row there)."""
        pairs = [(0, 0)]
        if self.num_hashed == other.num_hashed:
            pairs += [(i, i) for i in range(1, 1 + self.num_hashed)]
        pairs += [(row, other._index[token]) for token, row in self._index.items() if token in other._index]
        here, there = np.array(pairs, np.int64).T
        return here, there

    def to_dict(self) -> dict[str, object]:
        """What `from_dict` reads, for JSON."""
        return {"num_hashed": self.num_hashed, "tokens": self.tokens}

    @classmethod
    def from_dict(cls, value: dict[str, object]) -> Vocabulary:
        """The vocabulary that `to_dict` described."""
        tokens, num_hashed = value["tokens"], value["num_hashed"]
        if not isinstance(tokens, list) or not isinstance(num_hashed, int):
            raise ValueError("a vocabulary is an object with `tokens` (a list) and `num_hashed` (a number)")
        return cls([str(token) for token in tokens], num_hashed)


def words(text: str | None) -> list[str]:
    """The words of a title, lower case."""
    return _WORD.findall(text.lower()) if text else []
