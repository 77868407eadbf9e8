"""Fitted columns: vocabularies, scales and vectors learnt from one frame, applied to any other, saved without pickle.

Indices: 0 is "nothing" (missing, padding), `1 … num_oov` are shared by unknown values, then one a known value in sorted
order. The same frame gives the same bytes.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.errors import BundleError, ConfigurationError
from evensong.features.column_readers import FrameReader, reader_of
from evensong.features.column_values import lists
from evensong.features.columns import (
    CategoricalColumn,
    Column,
    ColumnSet,
    CrossColumn,
    ImageColumn,
    NumericColumn,
    RateColumn,
    SequenceColumn,
    TextColumn,
    VectorColumn,
    bucket_names,
    heads_of,
    parse,
)
from evensong.features.crosses import combined64, hash64, hash_text
from evensong.features.encoders import SentenceEncoder, open_encoder
from evensong.features.images import ImageEncoder, open_image_encoder
from evensong.features.rates import BetaPrior, fit_prior, smoothed_rates
from evensong.features.text import TextVectors
from evensong.types import Frame, Value

log = logging.getLogger(__name__)

#: In format 1 the length of a sequence was an index into a table of its own.
FORMAT, FORMATS = 2, (1, 2)
_FACTS, _ARRAYS = "columns.json", "columns.safetensors"
Array = NDArray[Any]


class Output(Value):
    """One array that a transform gives."""

    name: str
    kind: Literal["index", "indices", "number", "vector"]
    """`index`: int32 `[N]`; `indices`: int32 `[N, length]`; `number`: float32 `[N]`; `vector`: float32 `[N, size]`."""
    size: int
    """Rows of the embedding table for an index, numbers a row otherwise."""
    length: int = 1


@dataclass(frozen=True)
class Transformed:
    """A frame as arrays, in the order of the declaration, rows in the frame's order."""

    arrays: dict[str, Array]
    outputs: tuple[Output, ...]
    num_rows: int

    @property
    def names(self) -> list[str]:
        """Of the arrays."""
        return [output.name for output in self.outputs]

    def __getitem__(self, name: str) -> Array:
        """One array."""
        return self.arrays[name]

    def matrix(self) -> tuple[NDArray[np.float32], list[str]]:
        """The numbers and vectors side by side, `[N, D]`, and the name of each column (`title_0`, `title_1`, …)."""
        parts, names = [np.zeros((self.num_rows, 0), np.float32)], []
        for output in self.outputs:
            if output.kind == "number":
                parts.append(self.arrays[output.name].reshape(-1, 1))
                names.append(output.name)
            elif output.kind == "vector":
                parts.append(self.arrays[output.name])
                names.extend(f"{output.name}_{i}" for i in range(output.size))
        return np.concatenate(parts, axis=1), names


def fit(columns: ColumnSet, frame: Frame, *, cache: str | None = None, device: str = "cpu") -> FittedColumns:
    """Learn every column from the frame.

    Args:
        cache: URI of a folder in which encoders keep the vectors of what they have seen.
        device: where encoders run, as torch names it.

    Raises:
        SourceError: the frame lacks a column, or one is of the wrong type.
        ConfigurationError: an encoder is not to be had.
    """
    states: dict[str, _State] = {}
    encoders: dict[str, Any] = {}
    silent: list[str] = []
    for column in columns.root:
        if isinstance(column, TextColumn) and column.encoder != "tfidf":
            encoders[column.name] = open_encoder(column.encoder, device=device, cache=cache)
        if isinstance(column, ImageColumn):
            encoders[column.name] = open_image_encoder(column.encoder, device=device, cache=cache)
        states[column.name] = _fit_one(column, frame, encoders.get(column.name))
        if _is_silent(column, frame, states[column.name]):
            silent.append(column.name)
    if silent:
        log.warning("no row has a value of the columns %s; they say nothing", ", ".join(silent))
    return FittedColumns(columns, states, cache=cache, device=device, encoders=encoders)


class FittedColumns:
    """What the columns learnt; `transform` applies it, `save` and `load` carry it."""

    def __init__(
        self,
        columns: ColumnSet,
        states: Mapping[str, _State],
        *,
        cache: str | None = None,
        device: str = "cpu",
        encoders: Mapping[str, Any] | None = None,
        form: int = FORMAT,
    ) -> None:
        self.columns = columns
        self.form = form
        """The format in which they were saved, which they keep: towers were trained with these very outputs."""
        self._states = dict(states)
        self._cache, self._device = cache, device
        self._encoders: dict[str, Any] = dict(encoders or {})
        self.outputs = tuple(
            out for column in columns.root for out in _outputs(column, self._states[column.name], form)
        )
        """What a transform gives, known before it is run."""
        self._index = {
            column.name: {token: column.num_oov + 1 + i for i, token in enumerate(self.vocabulary(column.name))}
            for column in columns.root
            if isinstance(column, CategoricalColumn | SequenceColumn)
        }

    @property
    def sources(self) -> list[str]:
        """The columns that a frame must have, sorted."""
        return sorted({head for column in self.columns.root for head in heads_of(column)})

    def of_kinds(self, kinds: Collection[str]) -> FittedColumns:
        """These columns alone, as they were fitted; crosses need the columns that they combine."""
        chosen = ColumnSet(tuple(column for column in self.columns.root if column.kind in kinds))
        states = {column.name: self._states[column.name] for column in chosen.root}
        return FittedColumns(
            chosen, states, cache=self._cache, device=self._device, encoders=self._encoders, form=self.form
        )

    def vocabulary(self, name: str) -> list[str]:
        """The known values of a categorical or sequence column, in the order of their indices."""
        return list(self._states[name].facts["tokens"])

    def transform(self, frame: Frame) -> Transformed:
        """The frame as arrays.

        Raises:
            SourceError: the frame lacks a column, or one is of the wrong type.
        """
        arrays: dict[str, Array] = {}
        reader = reader_of(frame)
        categories = {c.name: reader.categories(c) for c in self.columns.root if isinstance(c, CategoricalColumn)}
        for column in self.columns.root:
            arrays |= self._transform_one(column, reader, categories)
        outputs = self.outputs
        return Transformed({output.name: arrays[output.name] for output in outputs}, outputs, len(frame))

    def save(self, directory: Path) -> Path:
        """Write `columns.json` and `columns.safetensors` into the directory."""
        from safetensors.numpy import save_file

        directory.mkdir(parents=True, exist_ok=True)
        content = {
            "format": self.form,
            "columns": self.columns.model_dump(mode="json"),
            "facts": {name: state.facts for name, state in self._states.items()},
        }
        (directory / _FACTS).write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        arrays = {f"{n}/{key}": array for n, state in self._states.items() for key, array in state.arrays.items()}
        save_file({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}, directory / _ARRAYS)
        return directory

    @classmethod
    def load(cls, directory: Path, *, cache: str | None = None, device: str = "cpu") -> FittedColumns:
        """Read what `save` wrote.

        Raises:
            BundleError: a file is missing, or is not what `save` writes.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            content = json.loads((directory / _FACTS).read_text())
            arrays = load_file(directory / _ARRAYS)
        except (OSError, ValueError, SafetensorError) as error:
            raise BundleError(f"{directory}: expected {_FACTS} and {_ARRAYS} of fitted columns: {error}") from error
        if not isinstance(content, dict) or content.get("format") not in FORMATS:
            raise BundleError(f"{directory / _FACTS}: expected format {FORMAT}, found another; fit the columns again")
        try:
            columns = parse(ColumnSet, content["columns"], str(directory / _FACTS))
            states = {column.name: _State(dict(content["facts"][column.name])) for column in columns.root}
        except (ConfigurationError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{directory / _FACTS}: is not what fitted columns write: {error}") from error
        for key in sorted(arrays):
            name, _, part = key.rpartition("/")
            if name not in states:
                raise BundleError(f"{directory / _ARRAYS}: holds {key}, and {_FACTS} knows no column {name}")
            states[name].arrays[part] = arrays[key]
        _check_complete(columns, states, directory)
        return cls(columns, states, cache=cache, device=device, form=content["format"])

    def _transform_one(
        self, column: Column, reader: FrameReader, categories: Mapping[str, list[str | None]]
    ) -> dict[str, Array]:
        state, name = self._states[column.name], column.name
        if isinstance(column, CategoricalColumn):
            return {name: _indices(categories[name], self._index[name], column.num_oov)}
        if isinstance(column, CrossColumn):
            hashes = [hash64(pl.Series(categories[part], dtype=pl.String)) for part in column.columns]
            return {name: (combined64(hashes) % np.uint64(column.num_buckets)).astype(np.int32)}
        if isinstance(column, NumericColumn):
            return _numbers(reader.numbers(column), column, state)
        if isinstance(column, SequenceColumn):
            return _padded(*reader.sequences(column), column, self._index[name], self.form)
        if isinstance(column, VectorColumn):
            vectors = reader.vectors(column)
            if column.normalise == "log":
                vectors = _logarithm(vectors.astype(np.float64)).astype(np.float32)
            return {name: vectors}
        if isinstance(column, RateColumn):
            odds = _log_odds(*reader.counts(column), state)
            return {name: ((odds - state.facts["centre"]) / state.facts["scale"]).astype(np.float32)}
        texts = reader.texts(column)
        if isinstance(column, ImageColumn):
            return {name: self._encoder(column, state).encode(texts)} if state.facts["dimension"] else {}
        if column.encoder == "tfidf":
            return {name: TextVectors(state.facts["terms"], **state.arrays).transform(texts)}
        return {name: self._encoder(column, state).encode(texts)}

    def _encoder(self, column: TextColumn | ImageColumn, state: _State) -> SentenceEncoder | ImageEncoder:
        """The encoder that the columns were fitted with: another one of the same name would mean something else."""
        encoder = self._encoders.get(column.name)
        if encoder is None:
            opened = open_encoder if isinstance(column, TextColumn) else open_image_encoder
            encoder = self._encoders[column.name] = opened(column.encoder, device=self._device, cache=self._cache)
        if encoder is None or encoder.fingerprint != state.facts["fingerprint"]:
            raise ConfigurationError(
                f"column {column.name}: fitted with {column.encoder} ({state.facts['fingerprint']}), found "
                f"{encoder.fingerprint if encoder else 'none'}; install the same model, or fit the columns again"
            )
        return encoder


@dataclass(frozen=True)
class _State:
    """What one column learnt: JSON facts and arrays."""

    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)


def _fit_one(column: Column, frame: Frame, encoder: Any) -> _State:
    reader = FrameReader(frame, fitting=True)
    if isinstance(column, CategoricalColumn):
        values = reader.categories(column)
        if column.bins is not None:
            return _State({"tokens": bucket_names(column.bins)})
        return _State({"tokens": _tokens(values, column)})
    if isinstance(column, SequenceColumn):
        return _State({"tokens": _tokens(lists(frame, column, fitting=True).explode().to_list(), column)})
    if isinstance(column, NumericColumn):
        return _fit_numbers(reader.numbers(column), column)
    if isinstance(column, RateColumn):
        return _fit_rate(*reader.counts(column), column)
    if isinstance(column, VectorColumn):
        reader.vectors(column)
        return _State()
    if isinstance(column, CrossColumn):
        return _State()
    texts = reader.texts(column)
    if encoder is not None:
        return _State({"dimension": encoder.dimension, "fingerprint": encoder.fingerprint})
    if isinstance(column, ImageColumn):
        return _State({"dimension": 0, "fingerprint": None})
    vectors = TextVectors.fit(texts, dimension=column.dimension, min_count=column.min_count)
    return _State(vectors.facts(), dict(vectors.arrays()))


def _is_silent(column: Column, frame: Frame, state: _State) -> bool:
    """Whether a column was fitted on nothing."""
    if isinstance(column, CategoricalColumn | SequenceColumn):
        return not state.facts["tokens"]
    if isinstance(column, NumericColumn):
        return bool(np.isnan(FrameReader(frame).numbers(column)).all())
    if isinstance(column, TextColumn | ImageColumn):
        return not any(FrameReader(frame).texts(column))
    return False


def _tokens(values: list[str | None], column: CategoricalColumn | SequenceColumn) -> list[str]:
    counts = Counter(value for value in values if value)
    often = sorted((t for t, n in counts.items() if n >= column.min_count), key=lambda t: (-counts[t], t))
    return sorted(often[: column.max_size])


def _indices(texts: list[str | None], index: Mapping[str, int], num_oov: int) -> NDArray[np.int32]:
    def place(text: str | None) -> int:
        if not text:
            return 0
        known = index.get(text)
        return known if known is not None else 1 + (hash_text(text) % num_oov if num_oov > 1 else 0)

    return np.fromiter((place(text) for text in texts), np.int32, len(texts))


def _padded(
    texts: list[str | None], sizes: NDArray[np.int64], column: SequenceColumn, index: Mapping[str, int], form: int
) -> dict[str, Array]:
    indices = np.zeros((len(sizes), column.length), np.int32)
    # Boolean assignment fills row by row, which is the order in which the lists were flattened.
    indices[np.arange(column.length)[None, :] < sizes[:, None]] = _indices(texts, index, column.num_oov)
    lengths = sizes.astype(np.int32) if form == 1 else (sizes / column.length).astype(np.float32)
    return {column.name: indices, f"{column.name}_length": lengths}


def _fit_rate(conversions: Array, trials: Array, column: RateColumn) -> _State:
    prior = fit_prior(pl.Series(conversions), pl.Series(trials), column.strength)
    state = _State({"a": prior.a, "b": prior.b})
    odds = _log_odds(conversions, trials, state)
    deviation = float(odds.std()) if len(odds) else 1.0
    return _State(
        state.facts
        | {"centre": float(odds.mean()) if len(odds) else 0.0, "scale": deviation if deviation > 1e-6 else 1.0}
    )


def _log_odds(conversions: Array, trials: Array, state: _State) -> Array:
    prior = BetaPrior(a=state.facts["a"], b=state.facts["b"])
    rates = smoothed_rates(pl.Series(conversions), pl.Series(trials), prior).to_numpy()
    odds: Array = np.log(rates) - np.log1p(-rates)
    return odds


def _fit_numbers(values: Array, column: NumericColumn) -> _State:
    known = values[~np.isnan(values)]
    if isinstance(column.missing, float):
        fill = column.missing
    elif not len(known):
        fill = 0.0
    else:
        fill = float(known.mean() if column.missing == "mean" else np.median(known))
    if column.normalise == "quantile":
        shares = np.linspace(0, 1, column.num_quantiles)
        return _State({"fill": fill}, {"quantiles": np.quantile(known, shares) if len(known) else np.zeros(1)})
    scaled = _logarithm(known) if column.normalise == "log" else known
    centre = float(scaled.mean()) if len(known) else 0.0
    deviation = float(scaled.std()) if len(known) else 1.0
    # A column of one value has a deviation of nothing but rounding.
    return _State({"fill": fill, "centre": centre, "scale": deviation if deviation > 1e-9 * abs(centre) else 1.0})


def _numbers(values: Array, column: NumericColumn, state: _State) -> dict[str, Array]:
    missing = np.isnan(values)
    numbers = np.where(missing, float(state.facts["fill"]), values)
    if column.normalise == "quantile":
        numbers = _ranks(numbers, state.arrays["quantiles"])
    elif column.normalise != "none":
        numbers = _logarithm(numbers) if column.normalise == "log" else numbers
        numbers = (numbers - state.facts["centre"]) / state.facts["scale"]
    found: dict[str, Array] = {column.name: numbers.astype(np.float32)}
    return found | ({f"{column.name}_missing": missing.astype(np.float32)} if column.indicator else {})


def _ranks(numbers: Array, quantiles: Array) -> Array:
    """The share of the fitted values below each number; of equal quantiles the middle one counts."""
    shares = np.linspace(0, 1, len(quantiles))
    from_below = np.interp(numbers, quantiles, shares)
    from_above = 1 - np.interp(-numbers, -quantiles[::-1], shares)
    return (from_below + from_above) / 2


def _logarithm(numbers: Array) -> Array:
    return np.sign(numbers) * np.log1p(np.abs(numbers))


def _outputs(column: Column, state: _State, form: int) -> list[Output]:
    name = column.name
    if isinstance(column, CategoricalColumn):
        return [Output(name=name, kind="index", size=1 + column.num_oov + len(state.facts["tokens"]))]
    if isinstance(column, CrossColumn):
        return [Output(name=name, kind="index", size=column.num_buckets)]
    if isinstance(column, SequenceColumn):
        size = 1 + column.num_oov + len(state.facts["tokens"])
        return [
            Output(name=name, kind="indices", size=size, length=column.length),
            Output(name=f"{name}_length", kind="index", size=column.length + 1)
            if form == 1
            else Output(name=f"{name}_length", kind="number", size=1),
        ]
    if isinstance(column, NumericColumn):
        number = Output(name=name, kind="number", size=1)
        return [number, Output(name=f"{name}_missing", kind="number", size=1)] if column.indicator else [number]
    if isinstance(column, RateColumn):
        return [Output(name=name, kind="number", size=1)]
    if isinstance(column, VectorColumn):
        return [Output(name=name, kind="vector", size=column.length)]
    size = (
        column.dimension if isinstance(column, TextColumn) and column.encoder == "tfidf" else state.facts["dimension"]
    )
    return [Output(name=name, kind="vector", size=size)] if size else []


def _check_complete(columns: ColumnSet, states: Mapping[str, _State], directory: Path) -> None:
    for column in columns.root:
        state = states[column.name]
        facts, arrays = set(state.facts), set(state.arrays)
        if isinstance(column, CategoricalColumn | SequenceColumn):
            complete = facts == {"tokens"}
        elif isinstance(column, NumericColumn):
            quantile = column.normalise == "quantile"
            complete = facts == ({"fill"} if quantile else {"fill", "centre", "scale"})
            complete &= arrays == ({"quantiles"} if quantile else set())
        elif isinstance(column, CrossColumn | VectorColumn):
            complete = not facts
        elif isinstance(column, RateColumn):
            complete = facts == {"a", "b", "centre", "scale"}
        elif isinstance(column, TextColumn) and column.encoder == "tfidf":
            complete = facts == {"terms"} and arrays == {"idf", "components"}
            complete = complete and state.arrays["components"].shape == (len(state.facts["terms"]), column.dimension)
        else:
            complete = facts == {"dimension", "fingerprint"}
        if not complete:
            raise BundleError(f"{directory}: the fitted state of {column.name} is incomplete; fit the columns again")
