"""The column language: which columns of people's own data become features, declared in one typed YAML file.

    users:
      - {kind: categorical, name: gender, source: attributes.gender}
      - {kind: categorical, name: age_bucket, source: attributes.age, bins: [18, 25, 35, 50]}
      - {kind: cross, name: gender_x_age, columns: [gender, age_bucket], num_buckets: 100}
    items:
      - {kind: numeric, name: price, normalise: log}
      - {kind: text, name: title, dimension: 32}

`load_columns(path).users.fit(frame)` learns vocabularies, scales and vectors from a frame and gives a `FittedColumns`
(see fitted_columns), which turns frames into arrays, and travels in a bundle as JSON and safetensors.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import numpy as np
import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, field_validator, model_validator

from evensong.errors import ConfigurationError
from evensong.types import Frame, Value

if TYPE_CHECKING:
    from evensong.features.fitted_columns import FittedColumns

#: Places that follow from the items' `category_path`: the path down to each level.
CATEGORY_PATH, CATEGORY_LEVELS = "category_path", ("category_1", "category_2", "category_3")

ModelT = TypeVar("ModelT", bound=BaseModel)


_NAME = r"^\w[\w-]*$"


class _Column(Value):
    name: str = Field(pattern=_NAME)
    """What the feature is called; the arrays carry it."""


class _SourceColumn(_Column):
    source: str | None = Field(None, min_length=1)
    """Where the values stand: a column, or a place inside a JSON or struct column (`attributes.city`); none: `name`."""

    @property
    def place(self) -> str:
        """The source, or the name where none is given."""
        return self.source or self.name


class _Vocabulary(_SourceColumn):
    min_count: int = Field(1, ge=1)
    """A value that occurs less often is treated as unknown."""
    max_size: int | None = Field(None, ge=1)
    """So many values are kept, the most frequent ones."""
    num_oov: int = Field(1, ge=1)
    """Unknown values share so many rows, by hash."""


class CategoricalColumn(_Vocabulary):
    """One of several values: an index into an embedding table. With `bins`, a number cut at them."""

    kind: Literal["categorical"] = "categorical"
    bins: tuple[float, ...] | None = None
    """Increasing borders; a number equal to a border belongs to the bucket that begins there."""

    @field_validator("bins")
    @classmethod
    def _increase(cls, bins: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if bins is not None and (not bins or any(not low < high for low, high in pairwise(bins))):
            raise ValueError("bins must be increasing numbers, at least one")
        return bins


class NumericColumn(_SourceColumn):
    """A number, brought to a common scale."""

    kind: Literal["numeric"] = "numeric"
    normalise: Literal["standard", "log", "quantile", "none"] = "standard"
    """`standard`: mean 0, deviation 1; `log`: the same after `sign(x) * ln(1 + |x|)`; `quantile`: its rank, 0 to 1."""
    missing: Literal["mean", "median"] | float = "mean"
    """What stands for a missing value, before it is normalised."""
    indicator: bool = True
    """Also give `<name>_missing`, 1 where the value was missing."""
    num_quantiles: int = Field(100, ge=2, le=10_000)
    decimal: Literal[".", ","] = "."
    """Of numbers written as text: what stands before the fraction."""
    date_format: str | None = Field(None, min_length=2)
    """The texts are dates, read as days since 1970: `iso`, or as `strptime` has it, such as `%d.%m.%Y`."""

    @field_validator("date_format")
    @classmethod
    def _is_a_format(cls, value: str | None) -> str | None:
        if value is not None and value != "iso" and "%" not in value:
            raise ValueError(f"expected iso, or a format such as %d.%m.%Y for 31.12.2026, got {value!r}")
        return value


class SequenceColumn(_Vocabulary):
    """Several values in an order: indices, cut and padded with 0 to one length, and `<name>_length`, how much of that
    length they fill, 0 to 1.
    """

    kind: Literal["sequence"] = "sequence"
    length: int = Field(ge=1, le=10_000)
    keep: Literal["last", "first"] = "last"
    """Which end of a longer sequence is kept."""
    separator: str | None = Field(None, min_length=1)
    """For a column of text: what stands between the values; blanks around them do not count."""


class TextColumn(_SourceColumn):
    """A text as a vector: TF-IDF compressed to `dimension` numbers, or a pretrained encoder's answer."""

    kind: Literal["text"] = "text"
    encoder: str = "tfidf"
    """`tfidf`, `minilm`, a folder, or a model id of the Hugging Face hub (all but the first need the extra `text`)."""
    dimension: int = Field(32, ge=1, le=4096)
    """Numbers a text, for `tfidf`; an encoder has its own."""
    min_count: int = Field(2, ge=1)


class ImageColumn(_SourceColumn):
    """A picture's URI as the last layer of a ResNet; left out, and said so, where its weights are absent."""

    kind: Literal["image"] = "image"
    encoder: str = "microsoft/resnet-50"
    """A folder, or a model id of the Hugging Face hub."""


class VectorColumn(_SourceColumn):
    """A list of numbers as it stands, such as shares by hour of day; nothing is zeros."""

    kind: Literal["vector"] = "vector"
    length: int = Field(ge=1, le=4096)
    keep: Literal["last", "first"] = "first"
    """Which end of a longer list is kept; a shorter one is filled with zeros at the other end."""
    normalise: Literal["log", "none"] = "none"
    """`log`: `sign(x) * ln(1 + |x|)`."""


class RateColumn(_Column):
    """How often one thing leads to another, smoothed by a prior over all rows (see `rates`): standardised log-odds."""

    kind: Literal["rate"] = "rate"
    conversions: str
    """The column that counts what came of it."""
    trials: str
    """The column that counts how often it could have."""
    strength: float = Field(0.0, ge=0)
    """Trials that the prior is worth; 0: as the spread of the rates says."""


class CrossColumn(_Column):
    """The product of two or three categorical columns declared beside it, hashed into buckets."""

    kind: Literal["cross"] = "cross"
    columns: tuple[str, ...] = Field(min_length=2, max_length=3)
    num_buckets: int = Field(ge=1)


Column = Annotated[
    CategoricalColumn
    | NumericColumn
    | SequenceColumn
    | VectorColumn
    | RateColumn
    | TextColumn
    | ImageColumn
    | CrossColumn,
    Field(discriminator="kind"),
]


class ColumnSet(RootModel[tuple[Column, ...]]):
    """The columns of one table, in order."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _consistent(self) -> ColumnSet:
        names = [column.name for column in self.root]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"each column needs a name of its own, found twice: {', '.join(twice)}")
        for column in self.root:
            if clash := sorted(name for name in names if _gives_too(column, name)):
                raise ValueError(
                    f"{clash[0]}: the {column.kind} column {column.name} gives this name too; choose another"
                )
        crossable = [column.name for column in self.root if isinstance(column, CategoricalColumn)]
        for column in self.root:
            if not isinstance(column, CrossColumn):
                continue
            if len(set(column.columns)) != len(column.columns):
                raise ValueError(f"{column.name}: a cross takes different columns, got {', '.join(column.columns)}")
            for name in column.columns:
                if name not in crossable:
                    raise ValueError(f"{column.name}: {name} is no categorical column here{nearest(name, crossable)}")
        return self

    def fit(self, frame: Frame, *, cache: str | None = None, device: str = "cpu") -> FittedColumns:
        """Learn from a frame; see `fitted_columns.fit`."""
        from evensong.features.fitted_columns import fit

        return fit(self, frame, cache=cache, device=device)


class PairCross(Value):
    """The product of categorical values of a user and of an item, two or three in all, hashed: a weight a bucket in the
    ranker.
    """

    name: str = Field(pattern=_NAME)
    columns: tuple[str, ...] = Field(min_length=2, max_length=3)
    """`users.NAME` and `items.NAME`: a categorical column declared there, or else a feature that may be one."""
    num_buckets: int = Field(ge=1, le=10_000_000)

    @model_validator(mode="after")
    def _of_both(self) -> PairCross:
        tables = [column.partition(".")[0] for column in self.columns]
        if set(tables) != {"users", "items"} or any(not column.partition(".")[2] for column in self.columns):
            raise ValueError(
                f"{self.name}: a cross of pairs takes users.NAME and items.NAME, got {', '.join(self.columns)}; "
                "for one table alone declare `kind: cross` among its columns"
            )
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"{self.name}: a cross takes different columns, got {', '.join(self.columns)}")
        return self


class _Statistic(Value):
    name: str = Field(pattern=r"^[a-z]\w*$")
    """What the feature is called: a column of a table, and a source that columns may read."""
    entity: Literal["user", "item"]
    """Whose events are counted."""
    column: str | None = None
    """What is summed: `value` (of the event), `item.price`, or a number inside the attributes of the event's item or
    user, such as `item.attributes.weight`, as the tables said when the event became known."""
    event_types: tuple[str, ...] | None = Field(None, min_length=1)
    """The events that count, whatever their value; none: the positive ones (`split.positive_event_types`)."""
    function: Literal["count", "sum", "mean"] | None = None
    """`count`: events, with a `column` those that have it; without it given, `sum` with a column and else `count`."""

    @property
    def computes(self) -> Literal["count", "sum", "mean"]:
        """The function, given or not."""
        return self.function or ("sum" if self.column else "count")

    @model_validator(mode="after")
    def _has_its_column(self) -> _Statistic:
        if self.column is None and self.computes != "count":
            raise ValueError(f"{self.name}: a {self.function} needs a column, such as value or item.price")
        if self.column is not None and not _SUMMED.match(self.column):
            places = ["value", "item.price", "item.attributes.NAME", "user.attributes.NAME"]
            raise ValueError(f"{self.name}: {self.column} is no column of events{nearest(self.column, places)}")
        return self


class WindowDeclaration(_Statistic):
    """A number over the last days: an event counts while `now - window_days < event_timestamp`."""

    kind: Literal["window"] = "window"
    window_days: float = Field(gt=0, le=3650)

    @property
    def window(self) -> str:
        """The window, for people."""
        return f"{self.window_days:g} day{'s' * (self.window_days != 1)}"


class DecayDeclaration(_Statistic):
    """A number in which an event loses half its weight every `half_life_days`."""

    kind: Literal["decay"] = "decay"
    half_life_days: float = Field(gt=0, le=3650)

    @property
    def window(self) -> str:
        """The half-life, for people."""
        return f"half-life {self.half_life_days:g} days"


StatisticDeclaration = Annotated[WindowDeclaration | DecayDeclaration, Field(discriminator="kind")]
_SUMMED = re.compile(r"^(value|item\.price|(item|user)\.attributes\..+)$")


class ColumnsFile(Value):
    """The columns of each table, crosses of both, and statistics of events; what is not named gives none."""

    users: ColumnSet = ColumnSet(())
    items: ColumnSet = ColumnSet(())
    crosses: tuple[PairCross, ...] = ()
    statistics: tuple[StatisticDeclaration, ...] = ()

    @model_validator(mode="after")
    def _each_by_one_name(self) -> ColumnsFile:
        for kind, declared in (("statistic", self.statistics), ("cross", self.crosses)):
            names = [one.name for one in declared]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"each {kind} needs a name of its own, found twice: {', '.join(twice)}")
        return self


def _gives_too(column: Column, name: str) -> bool:
    """Whether this is the name of something that the column gives beside its own name."""
    if isinstance(column, NumericColumn):
        return column.indicator and name == f"{column.name}_missing"
    if isinstance(column, SequenceColumn):
        return name == f"{column.name}_length"
    if isinstance(column, VectorColumn | TextColumn | ImageColumn):
        return re.fullmatch(rf"{re.escape(column.name)}_\d+", name) is not None
    return False


def places_of(column: Column) -> tuple[str, ...]:
    """Where a column reads its values; none for a cross, which reads other columns."""
    if isinstance(column, CrossColumn):
        return ()
    if isinstance(column, RateColumn):
        return (column.conversions, column.trials)
    return (column.place,)


def heads_of(column: Column) -> set[str]:
    """The columns that a frame must have for it."""
    heads = {place.split(".")[0] for place in places_of(column)}
    return {CATEGORY_PATH if head in CATEGORY_LEVELS else head for head in heads}


def load_columns(path: Path | None) -> ColumnsFile:
    """Read the file; without a path nothing is declared.

    Raises:
        ConfigurationError: no such file, no YAML, an unknown kind or key, or columns that contradict each other.
    """
    if path is None:
        return ColumnsFile()
    try:
        return _loaded(path, path.read_text())
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path}: expected your columns file (features.columns_path), found none; correct the path, or leave the "
            "setting empty for the built-in columns alone"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


@functools.lru_cache(8)
def _loaded(path: Path, written: str) -> ColumnsFile:
    try:
        content = yaml.load(written, Loader=_OnceEach)  # a SafeLoader: plain values, nothing that runs
    except yaml.YAMLError as error:
        raise _unreadable(path, error) from error
    return parse(ColumnsFile, content if content is not None else {}, str(path))


class _OnceEach(yaml.SafeLoader):
    """Refuses a key that stands twice in one place, of which YAML would keep the last without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name} stands twice in one place; make one of both", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _unreadable(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"{path}: expected a YAML file of columns: {error}; see docs/guides/columns.md")


def parse(model: type[ModelT], content: Any, where: str) -> ModelT:
    """A declaration from what YAML or JSON gave, with errors that name the place."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [_problem(found) for found in error.errors()]
        raise ConfigurationError(f"{where}: {'; '.join(lines)}; see docs/guides/columns.md") from error


def nearest(name: str, names: Iterable[str], *, others: bool = False) -> str:
    """What to add to an error about a name that is not there: the nearest ones, or all when they are few.

    Args:
        others: also say which others there are, after the nearest ones.
    """
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    guess = f"; did you mean {' or '.join(close)}?" if close else ""
    if close and not others:
        return guess
    listed = [*close, *(other for other in names if other not in close)][:20]
    return f"{guess}{' There' if close else '; there'} are {', '.join(listed) or 'none'}"


def bucket_names(bins: tuple[float, ...]) -> list[str]:
    """How the buckets between borders are called: `under 18`, `18 to 25`, `25 and over`."""
    marks = [f"{border:g}" for border in bins]
    return [f"under {marks[0]}", *(f"{low} to {high}" for low, high in pairwise(marks)), f"{marks[-1]} and over"]


def bucketed(values: pl.Series, bins: tuple[float, ...]) -> pl.Series:
    """The name of each number's bucket; a number on a border belongs to the bucket that begins there, null to none."""
    numbers = values.cast(pl.Float64)
    numbers = numbers.set(numbers.is_nan(), None)
    places = np.searchsorted(np.array(bins), numbers.fill_null(0.0).to_numpy(), side="right")
    names = pl.Series(values.name, bucket_names(bins))[places]
    return names.set(numbers.is_null(), None)


def _problem(found: Any) -> str:
    """What pydantic found, as people say it."""
    # what is in brackets is one of the types that a value may have
    place = ".".join(str(part) for part in found["loc"] if not str(part).endswith("]"))
    message, context = str(found["msg"]).removeprefix("Value error, "), found.get("ctx", {})
    if found["type"] == "extra_forbidden":
        message = f"unknown key{nearest(str(found['loc'][-1]), _keys_at(found['loc']))}"
    elif found["type"] == "union_tag_invalid":
        tags = str(context["expected_tags"]).replace("'", "").split(", ")
        message = f"unknown kind {context['tag']}{nearest(str(context['tag']), tags)}"
    elif found["type"] == "union_tag_not_found":
        kinds = "window or decay" if found["loc"][0] == "statistics" else "categorical, numeric or text"
        message = f"needs a `kind`, such as {kinds}"
    elif found["type"] == "string_pattern_mismatch":
        first = ", a lower-case letter first" if str(context["pattern"]).startswith("^[a-z]") else ""
        message = f"expected letters, digits and underscores without blanks{first}, got {found['input']!r}"
    elif found["type"] not in ("value_error", "missing"):
        got = repr(found["input"])
        keys = "keys with values, such as `users:`"
        expected = {
            "tuple_type": "a list, such as [a, b]",
            "string_type": "a text",
            **dict.fromkeys(("model_type", "dict_type", "model_attributes_type"), keys),
        }.get(found["type"])
        message = f"expected {expected}" if expected else message[:1].lower() + message[1:]
        message += f", got {got if len(got) <= 60 else got[:57] + '…'}"
        if found["type"] == "string_type" and isinstance(found["input"], bool):
            message += "; YAML takes yes, no, on and off for true and false: put it in quotes"
    return f"{place}: {message}" if place else message


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    """The keys that may stand where an unknown one does."""
    kinds: dict[object, type[BaseModel]] = {
        model.model_fields["kind"].default: model
        for union in (Column, StatisticDeclaration)
        for model in get_args(get_args(union)[0])
    }
    model = kinds.get(place[-2]) if len(place) > 1 else ColumnsFile
    if model is None and place[0] == "crosses":
        model = PairCross
    return list(model.model_fields) if model else []
