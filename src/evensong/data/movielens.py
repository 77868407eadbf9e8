"""MovieLens 100K and 1M as published, and 1M's ratings as Parquet beside its movies and users.

A movie becomes known when it was released or first rated, whichever was earlier, and not before the data begins; a user
with the first rating. So no row about a movie tells anything that was not known at its time.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import cast

import polars as pl

from evensong.data import batch, lake, storage, tabular, values
from evensong.data.batch import Batch
from evensong.errors import SourceError, StorageError
from evensong.types import CATEGORY_SEPARATOR, Frame

#: The files of each edition: ratings, movies, users.
EDITIONS = {
    "MovieLens 100K": ("u.data", "u.item", "u.user"),
    "MovieLens 1M": ("ratings.dat", "movies.dat", "users.dat"),
    "MovieLens 1M with Parquet ratings": ("interactions.parquet", "movies.dat", "users.dat"),
}
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
OCCUPATIONS = (
    "other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service",
    "doctor/health care", "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer",
    "retired", "sales/marketing", "scientist", "self-employed", "technician/engineer", "tradesman/craftsman",
    "unemployed", "writer",
)  # fmt: skip
COMPUTED = ("item_id", "title", "genres", "release_date")


def read(location: str, now: datetime) -> Batch:
    """Ratings, movies and users of a MovieLens folder, as it is at the moment `now`.

    Raises:
        SourceError: the folder holds no edition that we know, or a file of it cannot be read.
    """
    edition, (ratings_uri, movies_uri, users_uri) = _edition(location)
    ratings = lake.conform("interactions", batch.arrived(_ratings(edition, ratings_uri), now))
    if ratings.is_empty():
        raise SourceError(f"{ratings_uri}: expected ratings, found none; download the data set again")
    if edition == "MovieLens 100K":
        movies, users = _movies_100k(movies_uri), _users_100k(users_uri)
    else:
        movies, users = _movies_1m(movies_uri), _users_1m(users_uri)
    first_users = batch.first_users(ratings).drop("attributes").join(users, "user_id", "left", maintain_order="left")
    return Batch(
        interactions=ratings,
        first_items=_known_since(movies, ratings),
        first_users=lake.conform("users", first_users.with_columns(pl.col("attributes").fill_null("{}"))),
        moment=cast(datetime | None, ratings["created_timestamp"].max()),
    )


def fingerprints(location: str) -> dict[str, str]:
    """Each file of the edition with a mark that changes when the file does."""
    try:
        return {uri: storage.fingerprint(uri) for uri in _edition(location)[1]}
    except StorageError as error:
        raise SourceError(str(error)) from error


def _edition(location: str) -> tuple[str, tuple[str, str, str]]:
    for edition, names in EDITIONS.items():
        ratings, movies, users = (storage.join(location, name) for name in names)
        if storage.exists(ratings):
            for uri in (movies, users):
                if not storage.exists(uri):
                    raise SourceError(
                        f"{uri}: expected this file of {edition}, found none; download the data set again"
                    )
            return edition, (ratings, movies, users)
    wanted = ", ".join(names[0] for names in EDITIONS.values())
    found = "no such folder" if not storage.exists(location) else "none of them in it"
    raise SourceError(f"{location}: expected a MovieLens folder with one of {wanted}, found {found}; check the path")


def _ratings(edition: str, uri: str) -> Frame:
    if edition == "MovieLens 100K":
        raw = _cells(uri, "\t", 4)
    elif edition == "MovieLens 1M":
        raw = _cells(uri, "::", 4)
    else:
        names = {"user": "user_id", "item": "movie_id", "rating": "rating", "time": "timestamp"}
        raw = tabular.read_file(uri, names)
    raw = raw.rename(dict(zip(raw.columns, ("user", "item", "rating", "time"), strict=True)))
    rows = pl.DataFrame(
        [
            values.ids(raw["user"]).alias("user_id"),
            values.ids(raw["item"]).alias("item_id"),
            values.times(raw["time"], uri).alias("event_timestamp"),
            values.numbers(raw["rating"], uri).alias("value"),
        ]
    ).with_columns(event_type=pl.lit("rating"))
    # the Parquet edition's order within a user is exact where its times are not
    return batch.keep_order(rows) if uri.endswith(".parquet") else rows


def _movies_100k(uri: str) -> Frame:
    cells = _cells(uri, "|", 24)
    names = [f"c{5 + place}" for place in range(len(GENRES))]
    genres = pl.concat_list(
        pl.when(pl.col(name) == "1").then(pl.lit(genre)) for name, genre in zip(names, GENRES, strict=True)
    ).list.drop_nulls()
    return cells.select(
        pl.col("c0").alias("item_id"),
        pl.col("c1").alias("title"),
        genres.alias("genres"),
        pl.col("c2").str.to_date("%d-%b-%Y", strict=False).alias("release_date"),
    )


def _movies_1m(uri: str) -> Frame:
    year = pl.col("c1").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int32)
    return _cells(uri, "::", 3).select(
        pl.col("c0").alias("item_id"),
        pl.col("c1").alias("title"),
        pl.col("c2").str.split("|").alias("genres"),
        pl.date(year, 1, 1).alias("release_date"),
    )


def _users_100k(uri: str) -> Frame:
    cells = _cells(uri, "|", 5)
    named = cells.select(
        user_id="c0", age=pl.col("c1").cast(pl.Int32, strict=False), gender="c2", occupation="c3", zip="c4"
    )
    return named.select("user_id", batch.as_json(("age", "gender", "occupation", "zip")))


def _users_1m(uri: str) -> Frame:
    """In 1M the age is the lower bound of its group."""
    cells = _cells(uri, "::", 5)
    codes = {str(code): name for code, name in enumerate(OCCUPATIONS)}
    named = cells.select(
        user_id="c0",
        age=pl.col("c2").cast(pl.Int32, strict=False),
        gender="c1",
        occupation=pl.col("c3").replace(codes),
        zip="c4",
    )
    return named.select("user_id", batch.as_json(("age", "gender", "occupation", "zip")))


def _known_since(movies: Frame, ratings: Frame) -> Frame:
    begin = ratings["event_timestamp"].min()
    first = ratings.group_by("item_id").agg(pl.col("event_timestamp").min().alias("first_rating"))
    released = pl.col("release_date").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    listed = pl.max_horizontal(released.fill_null(begin), pl.lit(begin))
    movies = movies.join(first, "item_id", "left", maintain_order="left").with_columns(
        event_timestamp=pl.min_horizontal(listed, "first_rating"),
        category_path=pl.col("genres").list.head(3).list.join(CATEGORY_SEPARATOR),
        release_date=pl.col("release_date").cast(pl.String),
    )
    about = batch.as_json(("genres", "release_date"))
    return lake.conform("items", movies.select("item_id", "title", "category_path", about, "event_timestamp"))


def _cells(uri: str, separator: str, width: int) -> Frame:
    """A text file without header as columns c0, c1, … of strings; MovieLens is written in Latin-1."""
    try:
        lines = pl.Series("line", storage.read_bytes(uri).decode("latin-1").splitlines(), dtype=pl.String)
    except (StorageError, OSError) as error:
        raise SourceError(f"{uri}: cannot be read: {error}") from error
    parts = lines.filter(lines.str.strip_chars() != "").str.split(separator)
    wrong = parts.list.len() != width
    if wrong.any():
        row = wrong.arg_max() or 0
        raise SourceError(
            f"{uri}: row {row + 1}: expected {width} fields between {separator!r}, found {parts[row].to_list()}; "
            f"is it {Path(uri).name} as published?"
        )
    return parts.to_frame().select(pl.col("line").list.get(place).alias(f"c{place}") for place in range(width))
