"""A night judges what is new: the good goes on, the bad is kept with its reason, and too much of it stops the night."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evensong.data import quarantine, sources
from evensong.data.lake import Lake, conform
from evensong.data.mapping import EventMapping
from evensong.errors import ConfigurationError, NothingToLearnError, SourceError, ValidationFailedError
from evensong.pipelines import quarantine as held_back
from evensong.pipelines import validate
from evensong.settings import FeatureSettings, Settings, ValidationSettings
from evensong.types import Frame, Night

START = datetime(2026, 1, 1, tzinfo=UTC)
TABLES = ("interactions", "items", "users", "quarantine")


def night(day: float) -> Night:
    return Night(as_of=START + timedelta(days=day))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def lake(settings: Settings) -> Lake:
    """Twelve days of a steady shop: 40 views a day by 10 users of 5 items."""
    lake = Lake(settings.lake)
    lake.append_new("raw_items", items(*[f"i{n}" for n in range(5)]))
    lake.append_new("raw_users", users(*[f"u{n}" for n in range(10)]))
    lake.append_new("raw_interactions", pl.concat([day_of_views(day) for day in range(12)]))
    return lake


def items(*ids: str, **columns: Any) -> Frame:
    rows = pl.DataFrame({"item_id": ids}).with_columns(
        title=pl.col("item_id"), attributes=pl.lit("{}"), event_timestamp=pl.lit(START), price=pl.lit(1.0)
    )
    return conform("items", rows.with_columns(**{name: pl.lit(value) for name, value in columns.items()}))


def users(*ids: str) -> Frame:
    return conform("users", pl.DataFrame({"user_id": ids}).with_columns(attributes=pl.lit("{}"), event_timestamp=START))


def day_of_views(day: int, count: int = 40) -> Frame:
    rows = pl.DataFrame({"n": range(count)}).select(
        user_id=pl.format("u{}", pl.col("n") % 10),
        item_id=pl.format("i{}", pl.col("n") % 5),
        event_type=pl.lit("view"),
        event_timestamp=pl.lit(START + timedelta(days=day)) + pl.duration(minutes=1 + pl.col("n") * 30),
        value=pl.lit(1.0),
    )
    return conform("interactions", rows)


def bad(**columns: Any) -> Frame:
    """One view of day 11 at a moment of its own, made bad."""
    row = day_of_views(11, 1).with_columns(event_timestamp=pl.lit(START + timedelta(days=11, seconds=7)))
    row = row.with_columns(created_timestamp=pl.col("event_timestamp"))
    return conform("interactions", row.with_columns(**{name: pl.lit(value) for name, value in columns.items()}))


def content(lake: Lake) -> dict[str, Frame]:
    return {table: lake.read(table) for table in TABLES}


def report(settings: Settings, day: float) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(validate.run(settings, night(day))).read_text())
    return found


# ---------------------------------------------------------------- rows


def test_good_rows_reach_the_clean_tables_and_no_row_of_the_future_does(settings: Settings, lake: Lake) -> None:
    found = report(settings, 10)
    assert found["success"]
    assert lake.read("interactions").height == 400
    assert lake.read("items").height == 5
    assert lake.read("quarantine").is_empty()
    assert found["tables"]["interactions"] == {
        "judged": 400, "accepted": 400, "quarantined": 0, "guests": 0, "released": 0, "share": 0.0, "reasons": {},
    }  # fmt: skip
    validate.run(settings, night(12))
    assert lake.read("interactions").height == 480
    assert lake.read("interactions").columns == conform("interactions", day_of_views(0)).columns


def test_each_bad_row_is_quarantined_with_its_reasons(settings: Settings, lake: Lake) -> None:
    early = "event_timestamp is more than 300 s after the row became known"
    types = "cart, click, dwell, impression, purchase, rating, return, view"
    strange = f"event_type is none of {types} (EVENSONG_VALIDATION__EVENT_TYPES)"
    three = f"user_id is missing; {strange}; the item is not in the catalogue"
    wrong: list[tuple[Frame, str]] = [
        (bad(user_id=None), "user_id is missing"),
        (bad(item_id=None), "item_id is missing"),
        (bad(event_type=None), "event_type is missing"),
        (bad(event_type="telepathy"), strange),
        (bad(value=1e9, session_id="a"), "value is not between -100000 and 100000"),
        (bad(value=-1e9, session_id="b"), "value is not between -100000 and 100000"),
        (bad(position=-1), "position is negative"),
        (bad(propensity=0.0, session_id="c"), "propensity is not above 0 and at most 1"),
        (bad(propensity=1.5, session_id="d"), "propensity is not above 0 and at most 1"),
        (bad(user_id="nobody"), "the user is in no users table"),
        (bad(item_id="nothing"), "the item is not in the catalogue"),
        (bad(event_timestamp=START + timedelta(days=400)), early),
        (bad(event_timestamp=None, created_timestamp=None), "event_timestamp is missing"),
        (bad(created_timestamp=None, session_id="e"), "created_timestamp is missing"),
        (bad(event_timestamp=datetime(1970, 1, 1, tzinfo=UTC)), "event_timestamp is before 1971"),
        (bad(user_id=None, item_id="nothing", event_type="telepathy"), three),
    ]
    lake.append_new("raw_interactions", pl.concat([row for row, _ in wrong]))
    validate.run(settings, night(12))
    held = lake.read("quarantine")
    assert held["as_of"].unique().to_list() == [START + timedelta(days=12)]
    found = dict(zip(quarantine.decoded("interactions", held).drop("repeat").rows(), held["reason"], strict=True))
    assert found == {row.row(0): reason for row, reason in wrong}
    assert lake.read("interactions").height == 480


def test_of_exact_repeats_the_first_is_kept(settings: Settings, lake: Lake) -> None:
    twice = bad()
    lake.append_new("raw_interactions", pl.concat([twice, twice, twice]))
    validate.run(settings, night(12))
    assert lake.read("quarantine")["reason"].to_list() == ["duplicate of an earlier row"] * 2
    assert lake.read("interactions").height == 481


def test_what_is_no_product_is_no_item_and_its_events_go_too(settings: Settings, lake: Lake) -> None:
    lake.append_new("raw_items", items("postage", attributes='{"product": false}'))
    lake.append_new("raw_items", items("gold", price=1e7))
    lake.append_new("raw_interactions", pl.concat([bad(item_id="postage"), bad(item_id="gold")]))
    validate.run(settings, night(12))
    assert quarantine.summary(lake) == {
        "interactions": {"the item is not in the catalogue": 2},
        "items": {"not a product": 1, "price is not between 0 and 10000": 1},
        "users": {},
    }


def test_an_event_type_of_ones_own_is_a_setting(settings: Settings, lake: Lake) -> None:
    lake.append_new("raw_interactions", bad(event_type="listen"))
    mine = settings.model_copy(update={"validation": ValidationSettings(event_types=("view", "listen"))})
    validate.run(mine, night(12))
    assert lake.read("quarantine").is_empty()


def test_clocks_may_differ_a_little(settings: Settings, lake: Lake) -> None:
    """An event dated 40 seconds after its arrival is sound, and waits for the night that has reached its time."""
    as_of = START + timedelta(days=12)
    lake.append_new("raw_interactions", bad(event_timestamp=as_of + timedelta(seconds=40), created_timestamp=as_of))
    validate.run(settings, night(12))
    assert lake.read("interactions").height == 480
    lake.append_new("raw_interactions", day_of_views(12))
    validate.run(settings, night(13))
    assert lake.read("interactions").height == 521
    assert lake.read("quarantine").is_empty()


# ---------------------------------------------------------------- reruns


def test_a_rerun_of_a_night_changes_nothing(settings: Settings, lake: Lake) -> None:
    lake.append_new("raw_interactions", pl.concat([bad(user_id=None), bad(), bad()]))
    first, before, versions = report(settings, 12), content(lake), lake.versions()
    assert report(settings, 12) == first
    assert lake.versions() == versions
    assert all(before[table].equals(found) for table, found in content(lake).items())


@pytest.mark.slow
def test_an_earlier_night_after_a_later_one_takes_nothing_back(settings: Settings, lake: Lake) -> None:
    lake.append_new("raw_interactions", bad(user_id=None))
    validate.run(settings, night(12))
    before = content(lake)
    validate.run(settings, night(9))
    assert all(before[table].equals(found) for table, found in content(lake).items())


def test_rows_that_arrive_after_the_night_are_judged_by_its_rerun(settings: Settings, lake: Lake) -> None:
    lake.append_new("raw_interactions", bad(user_id=None))
    validate.run(settings, night(12))
    lake.append_new("raw_interactions", pl.concat([bad(item_id="nothing"), bad(item_id="i3")]))
    found = report(settings, 12)
    assert found["tables"]["interactions"]["judged"] == 483
    assert found["tables"]["interactions"]["quarantined"] == 2
    assert lake.read("interactions").height == 481
    assert lake.read("quarantine").height == 2


class Killed(BaseException):
    """What `except Exception` and `except EvensongError` let through, as a kill would be."""


def with_dirt(lake: Lake) -> None:
    lake.append_new("raw_interactions", pl.concat([bad(user_id=None), bad(), bad()]))
    lake.append_new("raw_items", items("postage", attributes='{"product": false}'))


@pytest.mark.slow
@pytest.mark.slow
def test_a_night_killed_at_any_write_ends_as_an_undisturbed_one(
    settings: Settings, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its first write, its second, …; then run again; each time on fresh raw tables."""
    with_dirt(lake)
    raw = {table: lake.read(table) for table in ("raw_items", "raw_users", "raw_interactions")}
    expected = report(settings, 12)["tables"]
    undisturbed = content(lake)
    for moment in range(1, 100):
        home = Settings(home=tmp_path / f"killed{moment}")
        for table, rows in raw.items():
            Lake(home.lake).replace(table, rows)
        writes = 0

        def dangerous(write: Callable[..., Any], deadly: int = moment) -> Callable[..., Any]:
            def perform(*args: Any, **options: Any) -> Any:
                nonlocal writes
                writes += 1
                done = write(*args, **options)
                if writes == deadly:
                    raise Killed
                return done

            return perform

        with monkeypatch.context() as patch:
            patch.setattr(Lake, "_commit", dangerous(Lake._commit))
            patch.setattr(validate.storage, "write_json", dangerous(validate.storage.write_json))
            try:
                validate.run(home, night(12))
                break
            except Killed:
                pass
        assert report(home, 12)["tables"] == expected, moment
        assert all(undisturbed[table].equals(found) for table, found in content(Lake(home.lake)).items()), moment
    assert writes == 6, "quarantine, verdict, items, users, interactions, report"


def test_rows_that_a_kill_kept_from_their_table_are_counted_once(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the verdict and the move, then run again with a row more."""
    lake.append_new("raw_interactions", bad(user_id=None))
    with monkeypatch.context() as patch:
        patch.setattr(Lake, "append_new", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            validate.run(settings, night(12))
    lake.append_new("raw_interactions", bad(item_id="nothing"))
    found = report(settings, 12)["tables"]
    assert (found["interactions"]["judged"], found["interactions"]["accepted"]) == (482, 480)
    assert (found["items"]["judged"], found["users"]["judged"]) == (5, 10)
    lake.append_new("raw_interactions", bad(item_id="no such thing"))
    assert report(settings, 12)["tables"]["interactions"]["judged"] == 483, "what was moved counts as before"


def test_an_import_between_two_readings_of_a_night_costs_no_event(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = validate._pending

    def and_import(lake: Lake, table: str, *rest: Any) -> Frame:
        found = read(lake, table, *rest)
        if table == "items":
            lake.append_new("raw_items", items("fresh"))
            lake.append_new("raw_users", users("newcomer"))
            lake.append_new("raw_interactions", bad(item_id="fresh", user_id="newcomer"))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(validate, "_pending", and_import)
        validate.run(settings, night(12))
    assert lake.read("quarantine").is_empty()
    validate.run(settings, night(12))
    assert lake.read("interactions").height == 481


# ---------------------------------------------------------------- what stops a night


def stopped(settings: Settings, day: float) -> str:
    with pytest.raises(ValidationFailedError) as error:
        validate.run(settings, night(day))
    return str(error.value)


def test_too_many_bad_rows_stop_the_night_and_the_error_shows_them(settings: Settings, lake: Lake) -> None:
    validate.run(settings, night(11))
    broken = day_of_views(11).with_columns(
        pl.col("event_timestamp") + timedelta(seconds=1), user_id=pl.lit(None, pl.String)
    )
    lake.append_new("raw_interactions", broken)
    said = stopped(settings, 12)
    assert "expect_column_values_to_be_between(quarantined_share_of_interactions)" in said
    assert "expected a share of at most 0.3 of the rows to be quarantined, found 0.5" in said
    assert "40 rows fail expect_column_values_to_not_be_null(user_id): user_id is missing" in said
    assert '"event_timestamp":"2026-01-12T' in said
    assert (
        "change the bound under `validation` in the settings, such as EVENSONG_VALIDATION__MAX_QUARANTINED_SHARE"
        in said
    )
    assert "import it again with --guests" in said
    assert lake.read("interactions").height == 440, "nothing of the night is learnt from"
    assert lake.read("quarantine").height == 40, "the bad rows are there to look at"
    assert stopped(settings, 12) == said, "a rerun is stopped as well"
    assert lake.read("quarantine").height == 40
    report_uri = settings.run_uri(night(12).run_id, "validation.json")
    assert not json.loads(Path(report_uri).read_text())["success"]


def broken_views(day: int, count: int = 40) -> Frame:
    """A day's views a second time, without their users."""
    return day_of_views(day, count).with_columns(
        pl.col("event_timestamp") + timedelta(seconds=1), user_id=pl.lit(None, pl.String)
    )


def held_since(lake: Lake) -> list[tuple[datetime, int]]:
    return lake.read("quarantine").group_by("as_of").len().sort("as_of").rows()


def assert_each_row_is_in_one_place(lake: Lake) -> None:
    held = quarantine.keys("interactions", lake.read("quarantine"))
    assert held.is_duplicated().sum() == 0
    clean = lake.read("interactions").with_columns(pl.lit(0, pl.Int32).alias("repeat"))
    assert clean.select(held.columns).is_duplicated().sum() == 0
    assert held.join(clean, held.columns, "semi", nulls_equal=True).is_empty()


def test_bad_rows_that_stopped_a_night_count_again_in_the_next_one(settings: Settings, lake: Lake) -> None:
    validate.run(settings, night(11))
    lake.append_new("raw_interactions", broken_views(11))
    stopped(settings, 12)
    lake.append_new("raw_interactions", day_of_views(12))
    assert "found 0.333333" in stopped(settings, 13), "40 of 120 rows, and nobody has corrected anything"
    assert lake.read("interactions").height == 440
    assert_each_row_is_in_one_place(lake)
    before, versions = content(lake), lake.versions()
    stopped(settings, 13)
    assert lake.versions() == versions
    assert all(before[table].equals(found) for table, found in content(lake).items())


def test_a_night_that_goes_on_takes_over_what_stopped_the_one_before(settings: Settings, lake: Lake) -> None:
    validate.run(settings, night(11))
    lake.append_new("raw_interactions", broken_views(11))
    stopped(settings, 12)
    lake.append_new(
        "raw_interactions", pl.concat([day_of_views(12), day_of_views(12).with_columns(session_id=pl.lit("x"))])
    )
    found = report(settings, 13)["tables"]["interactions"]
    assert (found["judged"], found["quarantined"]) == (160, 40)
    assert held_since(lake) == [(START + timedelta(days=13), 40)]
    assert lake.read("interactions").height == 560
    assert_each_row_is_in_one_place(lake)
    before = content(lake)
    assert report(settings, 12)["success"], "its bad rows are judged, by a night that went on"
    validate.run(settings, night(13))
    assert all(before[table].equals(found) for table, found in content(lake).items())
    lake.append_new("raw_interactions", day_of_views(13))
    assert report(settings, 14)["tables"]["interactions"]["quarantined"] == 0, "and count no more"


@pytest.mark.slow
def test_a_night_killed_while_it_takes_over_ends_as_an_undisturbed_one(
    settings: Settings, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Settings(home=tmp_path / "undisturbed")
    for table in ("raw_items", "raw_users", "raw_interactions"):
        Lake(undisturbed.lake).replace(table, lake.read(table))

    def killed(*_: Any) -> None:
        raise Killed

    for home in (undisturbed, settings):
        Lake(home.lake).append_new("raw_interactions", broken_views(11, 20))
        strict = home.model_copy(update={"validation": ValidationSettings(max_quarantined_share=0.01)})
        stopped(strict, 12)
        Lake(home.lake).append_new("raw_interactions", day_of_views(12))
        if home is settings:
            with monkeypatch.context() as patch:
                # the quarantine is written, the verdict is not
                patch.setattr(validate.storage, "write_json", killed)
                with pytest.raises(Killed):
                    validate.run(home, night(13))
            assert held_since(lake) == [(START + timedelta(days=13), 20)]
            stopped(strict, 12)
        validate.run(home, night(13))
    assert_each_row_is_in_one_place(lake)
    assert all(content(lake)[table].equals(found) for table, found in content(Lake(undisturbed.lake)).items())


def test_a_night_takes_over_only_what_it_sees(settings: Settings, lake: Lake) -> None:
    validate.run(settings, night(11))
    lake.append_new("raw_interactions", pl.concat([broken_views(11, 5), day_of_views(12, 10), broken_views(12)]))
    stopped(settings, 13)
    assert report(settings, 12)["tables"]["interactions"]["quarantined"] == 5
    assert held_since(lake) == [(START + timedelta(days=12), 5), (START + timedelta(days=13), 40)]
    assert "found 0.8" in stopped(settings, 13), "40 of 50"
    assert_each_row_is_in_one_place(lake)


def test_a_rule_that_changes_lets_rows_out_that_stopped_a_night(settings: Settings, lake: Lake) -> None:
    validate.run(settings, night(11))
    lake.append_new(
        "raw_interactions", broken_views(11).with_columns(user_id=pl.lit("u1"), event_type=pl.lit("listen"))
    )
    stopped(settings, 12)
    mine = settings.model_copy(update={"validation": ValidationSettings(event_types=("view", "listen"))})
    lake.append_new("raw_interactions", day_of_views(12))
    assert report(mine, 13)["success"]
    assert lake.read("quarantine").is_empty()
    assert lake.read("interactions").height == 560


@pytest.mark.slow
def test_a_night_that_went_on_and_is_stopped_by_later_rows_stays_stopped(settings: Settings, lake: Lake) -> None:
    lake.append_new("raw_interactions", bad(user_id=None))
    validate.run(settings, night(12))
    late = pl.concat([broken_views(11), *[broken_views(day, 48) for day in range(5, 11)]])
    lake.append_new("raw_interactions", late)
    said = stopped(settings, 12)
    assert stopped(settings, 12) == said
    lake.append_new("raw_interactions", day_of_views(12))
    stopped(settings, 13)
    wide = settings.model_copy(update={"validation": ValidationSettings(max_quarantined_share=0.9)})
    assert report(wide, 13)["success"]
    assert lake.read("quarantine").height == late.height + 1
    assert_each_row_is_in_one_place(lake)


def test_a_wider_bound_lets_the_stopped_night_pass(settings: Settings, lake: Lake) -> None:
    lake.append_new("raw_interactions", day_of_views(11).with_columns(item_id=pl.lit("nothing")))
    strict = settings.model_copy(update={"validation": ValidationSettings(max_quarantined_share=0.01)})
    stopped(strict, 12)
    assert report(settings, 12)["success"]
    assert lake.read("interactions").height == 480
    assert lake.read("quarantine").height == 40
    stopped(strict, 12)


def test_released_rows_stop_no_night_and_stay_where_they_are(settings: Settings, lake: Lake) -> None:
    validate.run(settings, night(11))
    lake.append_new("raw_interactions", broken_views(11))
    assert "`evensong quarantine release --reason WHY`" in stopped(settings, 12)
    (row,) = held_back.listed(settings)["counting"]
    assert row == {
        "as_of": "2026-01-13T00:00:00+00:00", "table": "interactions", "reason": "user_id is missing", "rows": 40,
    }  # fmt: skip
    said = held_back.release(settings, " the shop sent them again ", by="person:ann")
    assert said["rows"] == {"interactions": 40}
    assert held_back.listed(settings) == {
        "counting": [],
        "released": [{"at": said["at"], "by": "person:ann", "reason": "the shop sent them again", "rows": 40}],
    }
    found = report(settings, 12)["tables"]["interactions"]
    assert (found["judged"], found["quarantined"], found["released"], found["share"]) == (80, 40, 40, 0.0)
    assert held_since(lake) == [(START + timedelta(days=12), 40)]
    assert lake.read("interactions").height == 480
    before, versions = content(lake), lake.versions()
    assert report(settings, 12)["tables"]["interactions"] == found, "a rerun says the same"
    assert lake.versions() == versions
    assert all(before[table].equals(rows) for table, rows in content(lake).items())


def test_a_release_is_of_the_rows_that_were_there_and_of_those_that_stay_bad(settings: Settings, lake: Lake) -> None:
    validate.run(settings, night(11))
    unknown = broken_views(11, 20).with_columns(user_id=pl.lit("u1"), item_id=pl.lit("late"), session_id=pl.lit("s"))
    lake.append_new("raw_interactions", pl.concat([broken_views(11, 20), unknown]))
    stopped(settings, 12)
    held_back.release(settings, "looked at")
    lake.append_new("raw_items", items("late"))
    lake.append_new("raw_interactions", pl.concat([day_of_views(12), broken_views(12, 48)]))
    assert "found 0.324324" in stopped(settings, 13), "48 of 148: those of before count on neither side"
    held_back.release(settings, "looked at these too")
    found = report(settings, 13)["tables"]["interactions"]
    assert (found["accepted"], found["quarantined"], found["released"]) == (100, 68, 68), "what became sound is learnt"
    assert [one["rows"] for one in held_back.listed(settings)["released"]] == [40, 48]
    assert_each_row_is_in_one_place(lake)


def test_a_release_needs_a_reason_and_rows_that_count(settings: Settings, lake: Lake) -> None:
    with pytest.raises(ConfigurationError, match="found none that count: there is nothing to release"):
        held_back.release(settings, "why not")
    lake.append_new("raw_interactions", bad(user_id=None))
    validate.run(settings, night(12))
    with pytest.raises(ConfigurationError, match="nothing to release"):
        held_back.release(settings, "a night went on from them")
    lake.append_new("raw_interactions", pl.concat([broken_views(11), *[broken_views(day) for day in range(5, 11)]]))
    stopped(settings, 12)
    with pytest.raises(ConfigurationError, match="reason: expected some words, got none"):
        held_back.release(settings, "  ")
    held_back.release(settings, "looked at")
    with pytest.raises(ConfigurationError, match="nothing to release"):
        held_back.release(settings, "once more")


@pytest.mark.slow
def test_guests_count_only_where_they_are_usual(settings: Settings, lake: Lake) -> None:
    guests = day_of_views(11).with_columns(
        pl.col("event_timestamp") + timedelta(seconds=1), user_id=pl.lit(None, pl.String)
    )
    lake.append_new("raw_interactions", pl.concat([guests, guests.with_columns(event_type=pl.lit("click"))]))
    validate.run(settings, night(11))
    assert "import it again with --guests" in stopped(settings, 12)
    mapping = EventMapping(user="u", item="i", time="t", guests=True)
    sources.register(settings.lake, "events", "shop.csv", mapping)
    found = report(settings, 12)["tables"]["interactions"]
    assert (found["quarantined"], found["guests"], found["share"]) == (80, 80, 0.0)


def test_a_handful_of_bad_rows_stops_no_night(settings: Settings, lake: Lake) -> None:
    validate.run(settings, night(11))
    lake.append_new("raw_items", items("fine", "gold").with_columns(price=pl.Series([1.0, 1e7])))
    found = report(settings, 12)
    assert found["tables"]["items"]["share"] == 0.5
    assert any("fewer than 10 (validation.min_quarantined_rows)" in e["message"] for e in found["expectations"])
    every = settings.model_copy(update={"validation": ValidationSettings(min_quarantined_rows=1)})
    lake.append_new("raw_items", items("silver", price=1e7))
    assert "found 0.666667" in stopped(every, 12)


def test_a_night_that_stops_for_repeats_says_how_to_keep_them_apart(settings: Settings, lake: Lake) -> None:
    validate.run(settings, night(11))
    lake.append_new("raw_interactions", pl.concat([day_of_views(11).with_columns(session_id=pl.lit("x"))] * 2))
    said = stopped(settings, 12)
    assert "40 rows fail expect_column_values_to_be_in_set(repeat): duplicate of an earlier row" in said
    assert "--keep-order" in said


def test_stale_data_stops_the_night(settings: Settings, lake: Lake) -> None:
    said = stopped(settings, 20)
    assert "expect_column_values_to_be_between(days_since_newest_event)" in said
    assert "expected the newest event at most 3 days before as_of, found 8.1" in said


def test_a_day_out_of_proportion_stops_the_night(settings: Settings, lake: Lake) -> None:
    lake.append_new("raw_interactions", day_of_views(12, 3))
    said = stopped(settings, 13)
    assert "expect_column_values_to_be_between(last_day_rows)" in said
    assert "expected between 4 and 800 rows in the last day" in said
    assert said.count('"user_id"') == validate.SAMPLE_ROWS
    lake.append_new("raw_interactions", day_of_views(12))
    assert report(settings, 13)["success"], "the rest of the day arrived"


def test_a_shop_that_closes_on_saturdays_is_not_stopped_on_a_saturday(settings: Settings) -> None:
    lake = Lake(settings.lake)
    lake.append_new("raw_items", items(*[f"i{n}" for n in range(5)]))
    lake.append_new("raw_users", users(*[f"u{n}" for n in range(10)]))
    open_days = [day for day in range(24) if (START + timedelta(days=day)).isoweekday() != 6]
    lake.append_new("raw_interactions", pl.concat([day_of_views(day) for day in open_days]))
    for day in (7, 9, 10, 11):
        assert report(settings, day)["success"], f"day {day}"


def test_a_shop_that_reopens_after_weeks_is_not_stopped(settings: Settings, lake: Lake) -> None:
    lake.append_new("raw_interactions", day_of_views(40))
    assert report(settings, 41)["success"], "of empty days alone nobody knows what a usual one is"


def test_a_first_import_of_a_long_history_passes_at_once(settings: Settings, lake: Lake) -> None:
    assert report(settings, 12)["volume"]["trailing_days"] == [40] * 10


def test_an_as_of_before_the_first_event_is_refused(settings: Settings, lake: Lake) -> None:
    with pytest.raises(NothingToLearnError, match=r"the first is of 2026-01-01 00:01 UTC; choose a later --as-of"):
        validate.run(settings, night(-5))
    with pytest.raises(NothingToLearnError, match="there are none"):
        validate.run(settings.model_copy(update={"home": settings.home / "empty"}), night(1))


# ---------------------------------------------------------------- what is left to read


def test_data_docs_show_every_expectation(settings: Settings, lake: Lake) -> None:
    lake.append_new("raw_interactions", bad(item_id="nothing"))
    found = report(settings, 12)
    docs = Path(found["data_docs"])
    assert docs == Path(settings.run_uri(night(12).run_id, "data_docs", "index.html"))
    assert docs.is_file()
    # a year of nights does not keep four megabytes of fonts and animations each
    assert sum(path.stat().st_size for path in docs.parent.rglob("*") if path.is_file()) < 1_000_000
    pages = " ".join(page.read_text() for page in docs.parent.rglob("validations/**/*.html"))
    # each page is whole by itself: a file that is opened, or a server without the internet, shows it
    assert not re.search(r"<script|<link|<img|src=|url\(", docs.read_text() + pages)
    for column in ("unknown_item", "quarantined_share", "days_since_newest_event", "last_day_rows"):
        assert column in pages
        assert column in docs.read_text()
    asked = {(o["table"], o["expectation"]) for o in found["expectations"]}
    assert ("interactions", "expect_column_values_to_not_be_null") in asked
    assert ("raw", "expect_column_values_to_be_in_set") in asked, "the schema"


# ---------------------------------------------------------------- the columns file


def with_columns_file(settings: Settings, lake: Lake, columns: str) -> Settings:
    """The shop with attributes of its items and of one user, and a columns file."""
    lake.append_new("raw_items", items("i5", attributes='{"brand": "oak", "colour": "red", "size": 3}'))
    lake.append_new("raw_users", users("u10").with_columns(attributes=pl.lit('{"home": {"town": "Ulm"}}')))
    path = settings.home / "columns.yaml"
    path.write_text(columns)
    return settings.model_copy(update={"features": FeatureSettings(columns_path=path)})


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            "items: [{kind: categorical, name: brand, source: attributes.brnad}]",
            "column brand: no row of attributes has brnad; did you mean brand? There are brand, colour, size; correct ",
        ),
        (
            "users: [{kind: numeric, name: age, source: attributes.age}]",
            "; there are home; correct the column, or import what it reads (--user-attributes, --item-attributes)",
        ),
        (
            "crosses: [{name: x, columns: [users.attributes.hoem, items.category_1], num_buckets: 9}]",
            "column attributes_hoem: no row of attributes has hoem; did you mean home?",
        ),
        (
            "statistics: [{kind: window, name: heft, entity: user, column: item.attributes.szie, window_days: 7}]",
            "columns.yaml: statistics: column heft: no row of attributes has szie; did you mean size?",
        ),
        ("items: [{kind: categorical, name: brand}]", "no such column; did you mean attributes.brand?"),
        ("users: [{kind: numeric, name: x, source: spend_31d}]", "no such column; did you mean spend_1d or spend_30d"),
        ("items: [{kind: categorical, name: price}]", "in price, found Float64; give `bins`, or `kind: numeric`"),
        (
            "items: [{kind: categorical, name: brand, source: attributes.brand, bins: [1, 2]}]",
            "column brand: expected numbers in attributes.brand, found 'oak' and the like in 1 of 1 values; ",
        ),
    ],
)
def test_a_column_that_reads_what_nobody_has_stops_the_night_here(
    settings: Settings, lake: Lake, columns: str, said: str
) -> None:
    mine = with_columns_file(settings, lake, columns)
    with pytest.raises(SourceError) as raised:
        validate.run(mine, night(12))
    assert said in str(raised.value)
    mine.features.columns_path.write_text("{}")  # type: ignore[union-attr]
    assert report(mine, 12)["success"], "the rerun with a corrected file goes on"


def test_a_columns_file_that_is_right_passes(settings: Settings, lake: Lake) -> None:
    right = """
users:
  - {kind: categorical, name: town, source: attributes.home.town}
  - {kind: numeric, name: spends, source: spend_30d}
  - {kind: numeric, name: bought, source: bought_9d}
items:
  - {kind: categorical, name: brand, source: attributes.brand}
  - {kind: categorical, name: shelf, source: category_1}
  - {kind: text, name: title}
  - {kind: image, name: picture, source: image_uri}
  - {kind: numeric, name: week, source: item_events_7d}
  - {kind: rate, name: sold, conversions: item_purchases_7d, trials: item_views_7d}
crosses:
  - {name: x, columns: [users.town, items.attributes.colour], num_buckets: 9}
statistics:
  - {name: bought_9d, entity: user, kind: window, window_days: 9, event_types: [purchase]}
"""
    assert report(with_columns_file(settings, lake, right), 12)["success"]
