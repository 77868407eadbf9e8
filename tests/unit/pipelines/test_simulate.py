"""Simulated days as a source: written whole, the same again, and only where they belong."""

from datetime import UTC, date, datetime

import polars as pl
import pytest

from evensong.data import sources
from evensong.data.lake import Lake
from evensong.data.simulator import ShopConfig
from evensong.errors import BusyError, ConfigurationError, ValidationFailedError
from evensong.pipelines import ingest, simulate, validate
from evensong.pipelines.night import hold_home
from evensong.settings import Settings
from evensong.types import TABLES, Night

SMALL = ShopConfig(seed=5, num_users=150, num_items=120, new_users_per_day=2, new_items_per_day=2)
START = date(2026, 3, 2)


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path)


def contents(home):
    return {str(p.relative_to(home)): p.read_bytes() for p in sorted((home / "simulator").rglob("*")) if p.is_file()}


def test_days_are_written_as_a_registered_source(settings):
    told = []
    result = simulate.run(settings, days=2, start=START, config=SMALL, policy="warmup", on_day=told.append)
    assert result["days"] == told
    assert [day["date"] for day in told] == ["2026-03-02", "2026-03-03"]
    source = sources.registered(settings.lake)["simulator"]
    assert (source.kind, source.location) == ("contract", result["location"])
    batch = sources.read(source)
    assert batch.interactions.height == result["events"]
    assert batch.items["item_id"].n_unique() == 120 + 2 * 2
    assert batch.users["user_id"].n_unique() == 150 + 2 * 2
    for name, schema in TABLES.items():
        frame = pl.read_parquet(f"{result['location']}/{name}/2026-03-03.parquet")
        assert frame.schema == pl.Schema(schema)


def test_same_days_again_have_the_same_bytes(settings):
    simulate.run(settings, days=3, start=START, config=SMALL, policy="warmup")
    before = contents(settings.home)
    simulate.run(settings, days=1, start=date(2026, 3, 3), policy="warmup")
    simulate.run(settings, days=3, start=START, config=SMALL, policy="warmup")
    assert contents(settings.home) == before


def test_days_in_one_go_equal_days_one_by_one(settings, tmp_path):
    simulate.run(settings, days=3, start=START, config=SMALL, policy="popularity")
    other = Settings(home=tmp_path / "other")
    for _ in range(3):
        simulate.run(
            other, start=START if not (tmp_path / "other").exists() else None, config=SMALL, policy="popularity"
        )
    assert contents(other.home) == contents(settings.home)


def test_half_written_day_is_written_again(settings):
    simulate.run(settings, days=2, start=START, config=SMALL, policy="warmup")
    before = contents(settings.home)
    folder = settings.home / "simulator"
    (folder / "days" / "2026-03-03.json").unlink()
    (folder / "items" / "2026-03-03.parquet").unlink()
    result = simulate.run(settings, policy="warmup")
    assert result["start"] == "2026-03-03"
    assert contents(settings.home) == before


def test_a_day_that_is_not_done_has_no_events_without_their_items_and_is_not_ingested(settings, monkeypatch):
    simulate.run(settings, start=START, config=SMALL, policy="warmup")
    night = Night(as_of="2026-03-05")
    assert ingest.run(settings, night)["interactions"] > 0
    written = []
    write = simulate.storage.write_frame

    def killed(uri, frame):
        written.append(uri.split("/")[-2])
        if len(written) == 3:
            raise KeyboardInterrupt
        return write(uri, frame)

    with monkeypatch.context() as patch:
        patch.setattr(simulate.storage, "write_frame", killed)
        with pytest.raises(KeyboardInterrupt):
            simulate.run(settings, policy="warmup")
    assert written == ["items", "users", "interactions"]
    assert ingest.run(settings, night) == {"interactions": 0, "items": 0, "users": 0}
    result = simulate.run(settings, policy="warmup")
    assert ingest.run(settings, night)["interactions"] == result["events"]


def days_of(settings):
    return sorted(path.stem for path in (settings.home / "simulator" / "days").iterdir())


def test_a_shop_that_lives_on_lives_each_nights_days_at_its_ingest(settings):
    simulate.run(settings, days=2, start=START, config=SMALL, policy="warmup", lives_on=True)
    assert ingest.run(settings, Night(as_of="2026-03-04"))["interactions"] > 0
    assert days_of(settings) == ["2026-03-02", "2026-03-03"], "the day of as_of has only begun"
    added = ingest.run(settings, Night(as_of="2026-03-06T02:00:00Z"))
    assert days_of(settings) == [f"2026-03-0{day}" for day in range(2, 6)]
    raw = Lake(settings.lake).read("raw_interactions")
    assert raw.filter(pl.col("event_timestamp") >= datetime(2026, 3, 4, tzinfo=UTC)).height == added["interactions"] > 0


def test_a_night_again_or_an_older_one_lives_no_day_twice(settings):
    simulate.run(settings, days=2, start=START, config=SMALL, policy="warmup", lives_on=True)
    ingest.run(settings, Night(as_of="2026-03-05"))
    before = contents(settings.home)
    for as_of in ("2026-03-05", "2026-03-03"):
        assert ingest.run(settings, Night(as_of=as_of)) == {"interactions": 0, "items": 0, "users": 0}
    assert contents(settings.home) == before


def test_days_lived_by_a_night_are_those_that_a_person_would_have_simulated(settings, tmp_path):
    simulate.run(settings, days=2, start=START, config=SMALL, policy="warmup", lives_on=True)
    ingest.run(settings, Night(as_of="2026-03-06"))
    other = Settings(home=tmp_path / "other")
    simulate.run(other, days=2, start=START, config=SMALL, policy="warmup", lives_on=True)
    simulate.run(other, days=2)
    assert contents(other.home) == contents(settings.home)


def test_a_shop_stands_still_unless_it_was_told_to_live_on(settings):
    simulate.run(settings, days=2, start=START, config=SMALL, policy="warmup")
    ingest.run(settings, Night(as_of="2026-03-06"))
    assert len(days_of(settings)) == 2
    assert simulate.run(settings, days=0, lives_on=True)["days"] == []
    ingest.run(settings, Night(as_of="2026-03-05"))
    simulate.run(settings, days=0, lives_on=False)
    ingest.run(settings, Night(as_of="2026-03-07"))
    assert len(days_of(settings)) == 3


def test_a_night_of_another_source_leaves_the_shop_alone(settings, tmp_path):
    simulate.run(settings, days=2, start=START, config=SMALL, policy="warmup", lives_on=True)
    sources.register(settings.lake, "contract", str(settings.home / "simulator"), name="another")
    ingest.run(settings, Night(as_of="2026-03-06", source="another"))
    assert len(days_of(settings)) == 2


def test_a_night_without_new_events_says_how_to_live_the_days(settings):
    simulate.run(settings, days=9, start=START, config=SMALL, policy="warmup")
    night = Night(as_of="2026-03-15")
    ingest.run(settings, night)
    with pytest.raises(ValidationFailedError, match=r"has lived up to 2026-03-10.*`evensong simulate --days 4`"):
        validate.run(settings, night)
    simulate.run(settings, days=4)
    ingest.run(settings, night)
    validate.run(settings, night)


def test_a_shop_does_not_live_while_a_night_runs(settings, monkeypatch):
    monkeypatch.setattr(simulate, "WAIT_SECONDS", 0.0)
    with hold_home(settings), pytest.raises(BusyError):
        simulate.run(settings, start=START, config=SMALL, policy="warmup")
    assert not (settings.home / "simulator").exists()


def test_a_home_that_was_moved_takes_its_shop_along(settings, tmp_path):
    old = settings.model_copy(update={"home": tmp_path / "old"})
    simulate.run(old, start=START, config=SMALL, policy="warmup")
    new = old.model_copy(update={"home": old.home.rename(tmp_path / "new")})
    result = simulate.run(new, policy="warmup")
    assert sources.registered(new.lake)["simulator"].location == result["location"] == new.place("simulator")


def test_a_seed_that_is_none_makes_no_shop(settings):
    with pytest.raises(ConfigurationError, match=r"seed: .*greater than or equal to 0, got -1"):
        simulate.run(settings, seed=-1, policy="warmup")
    assert not (settings.home / "simulator").exists()


def test_without_a_champion_the_warmup_policy_stands_in_and_says_so(settings):
    result = simulate.run(settings, start=START, config=SMALL, policy="champion")
    assert result["days"][0]["policy"] == "warmup, for there is no champion yet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 6}, "another shop lives here; it differs in seed"),
        ({"config": SMALL.model_copy(update={"num_items": 99})}, "differs in num_items"),
        ({"start": date(2026, 3, 9)}, "2026-03-03 was not simulated yet"),
        ({"start": date(2026, 2, 1)}, "the shop opened on 2026-03-02"),
        ({"start": START, "policy": "popularity"}, "was simulated with policy warmup"),
        ({"days": 0}, "expected 1 or more, got 0"),
        ({"days": -1, "lives_on": True}, "expected 1 or more, got -1"),
        ({"policy": "best"}, "expected one of warmup, popularity, champion"),
        ({"exploration": 2.0}, "expected a share from 0 to 1"),
    ],
)
def test_what_does_not_fit_the_shop_is_refused(settings, arguments, message):
    simulate.run(settings, start=START, config=SMALL, policy="warmup")
    before = contents(settings.home)
    with pytest.raises(ConfigurationError, match=message):
        simulate.run(settings, **({"policy": "warmup"} | arguments))
    assert contents(settings.home) == before
