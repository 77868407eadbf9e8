"""Importers and the register: what comes in, what it becomes, and what is said when it cannot."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evensong.data import sources, storage
from evensong.data.lake import Lake, conform
from evensong.data.mapping import EventMapping, read_mapping
from evensong.errors import SourceError, StorageError
from evensong.pipelines import imports, ingest
from evensong.settings import Settings
from evensong.types import Night

NIGHT = Night(as_of="2026-02-01")  # type: ignore[arg-type]
MAPPING = EventMapping(user="who", item="what", time="when")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def lines(path: Path, *rows: str, header: str = "who,what,when") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def at(day: int, hour: int = 0) -> datetime:
    return datetime(2026, 1, day, hour, tzinfo=UTC)


def within(day: int) -> datetime:
    """When an event is stamped of which only the day is known."""
    return at(day) + timedelta(microseconds=1)


# ---------------------------------------------------------------- events


def test_events_make_known_their_items_and_users(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "e.csv", "ann,tea,2026-01-02", "bob,tea,2026-01-01", "ann,mug,2026-01-03")
    assert imports.events(settings, path, MAPPING) == {"interactions": 3, "items": 2, "users": 2}
    lake = Lake(settings.lake)
    assert lake.read("raw_items").select("item_id", "title", "event_timestamp").rows() == [
        ("tea", "tea", within(1)),
        ("mug", "mug", within(3)),
    ]
    assert lake.read("raw_users")["event_timestamp"].to_list() == [within(1), within(2)]
    assert lake.read("raw_interactions")["event_type"].unique().to_list() == ["view"]


def test_a_grown_file_adds_just_what_is_new(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "e.csv", "ann,tea,2026-01-02")
    imports.events(settings, path, MAPPING)
    assert ingest.run(settings, NIGHT) == {"interactions": 0, "items": 0, "users": 0}
    lines(tmp_path / "e.csv", "ann,mug,2026-01-01", "ann,tea,2026-01-02", "cid,tea,2026-01-04")
    # ann is known a day earlier now
    assert imports.events(settings, path, MAPPING) == {"interactions": 2, "items": 1, "users": 2}
    assert ingest.run(settings, NIGHT) == {"interactions": 0, "items": 0, "users": 0}


def test_a_night_ingests_what_has_arrived_in_a_folder(settings: Settings, tmp_path: Path) -> None:
    lines(tmp_path / "in" / "day1.csv", "ann,tea,2026-01-01")
    imports.events(settings, str(tmp_path / "in"), MAPPING, name="shop")
    pl.DataFrame({"who": [7.0], "what": ["mug"], "when": [at(2)]}).write_parquet(tmp_path / "in" / "day2.parquet")
    assert ingest.run(settings, NIGHT)["interactions"] == 1
    assert Lake(settings.lake).read("raw_interactions")["user_id"].to_list() == ["ann", "7"]


def test_every_mapped_column_arrives_in_its_place(settings: Settings, tmp_path: Path) -> None:
    header = "who,what,when,kind,stars,visit,req,slot,prob,arrived,name,dept,shelf,cost,pic,colour,town"
    row = (
        "ann,t1,2026-01-02T10:00:00Z,purchase,4.5,v1,r1,3,0.25,2026-01-02T11:00:00Z,Tea,Food,Drinks,2.5,img/t1,red,York"
    )
    columns = {
        "user": "who", "item": "what", "time": "when", "event_type": "kind", "value": "stars", "session": "visit",
        "request": "req", "position": "slot", "propensity": "prob", "created": "arrived", "title": "name",
        "category": ("dept", "shelf"), "price": "cost", "image": "pic", "item_attributes": "colour",
        "user_attributes": ("town",),
    }  # fmt: skip
    imports.events(settings, lines(tmp_path / "e.csv", row, header=header), EventMapping(**columns))  # type: ignore[arg-type]
    lake = Lake(settings.lake)
    assert lake.read("raw_interactions").row(0) == (
        "ann", "t1", "purchase", at(2, 10), 4.5, "v1", "r1", 3, 0.25, at(2, 11), 0,
    )  # fmt: skip
    assert lake.read("raw_items").row(0) == (
        "t1", "Tea", "Food > Drinks", 2.5, "img/t1", '{"colour":"red"}', at(2, 10), at(2, 11), 0,
    )  # fmt: skip
    assert lake.read("raw_users").row(0) == ("ann", '{"town":"York"}', at(2, 10), at(2, 11), 0)


def test_a_changed_price_holds_from_the_month_after_it_was_seen(settings: Settings, tmp_path: Path) -> None:
    def sale(month: int, day: int, price: float) -> str:
        return f"ann,tea,2025-{month:02d}-{day:02d},{price}"

    rows = [sale(1, 5, 2.0), sale(1, 9, 2.1), sale(2, 3, 2.05), sale(3, 1, 5.0), sale(3, 8, 5.2), sale(4, 2, 9.0)]
    path = lines(tmp_path / "e.csv", *rows, header="who,what,when,cost")
    imports.events(settings, path, MAPPING.model_copy(update={"price": "cost"}))
    found = Lake(settings.lake).read("raw_items").select("price", "event_timestamp").rows()
    assert found == [(2.0, datetime(2025, 1, 5, 0, 0, 0, 1, tzinfo=UTC)), (5.1, datetime(2025, 4, 1, tzinfo=UTC))]


def test_a_catalogue_describes_items_and_its_changes_are_dated_now(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "e.csv", "ann,t1,2026-01-02", "ann,x9,2026-01-05")
    items = lines(tmp_path / "items.csv", "t1,Tea,2.5", "m1,Mug,7", header="sku,name,cost")
    mapping = EventMapping(
        user="who", item="what", time="when", items=items, items_id="sku", title="name", price="cost"
    )
    assert imports.events(settings, path, mapping)["items"] == 3
    assert Lake(settings.lake).current_items(at(31)).select("item_id", "title", "price").rows() == []  # not judged yet
    raw = Lake(settings.lake).read("raw_items")
    assert raw.select("item_id", "title", "price", "event_timestamp").rows() == [
        ("m1", "Mug", 7.0, within(2)),
        ("t1", "Tea", 2.5, within(2)),
        ("x9", "x9", None, within(5)),
    ]
    lines(tmp_path / "items.csv", "t1,Tea,3.5", "m1,Mug,7", "n1,New,1", header="sku,name,cost")
    lines(tmp_path / "e.csv", "ann,t1,2026-01-02", "ann,x9,2026-01-05", "bob,m1,2026-01-09")
    assert ingest.run(settings, NIGHT) == {"interactions": 1, "items": 2, "users": 1}
    assert ingest.run(settings, NIGHT) == {"interactions": 0, "items": 0, "users": 0}
    assert Lake(settings.lake).read("raw_items")[-1].select("item_id", "price", "event_timestamp").rows() == [
        ("t1", 3.5, within(9))
    ]


def test_an_item_without_a_title_is_called_by_its_id(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "e.csv", "ann,t1,2026-01-02", "ann,m1,2026-01-03")
    items = lines(tmp_path / "items.csv", "t1,Tea,2.5", "m1,,7", header="sku,name,cost")
    mapping = EventMapping(
        user="who", item="what", time="when", items=items, items_id="sku", title="name", price="cost"
    )
    imports.events(settings, path, mapping)
    titles = Lake(settings.lake).read("raw_items").select("item_id", "title").rows()
    assert sorted(titles) == [("m1", "m1"), ("t1", "Tea")]


def test_users_may_be_described_too(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "e.csv", "1,t1,2026-01-02")
    users = lines(tmp_path / "u.csv", "1,44", "2,18", header="who,age")
    mapping = MAPPING.model_copy(update={"users": users, "user_attributes": ("age",)})
    assert imports.events(settings, path, mapping)["users"] == 2
    assert Lake(settings.lake).read("raw_users")["attributes"].to_list() == ['{"age":"44"}', '{"age":"18"}']


def test_the_files_order_survives_when_asked_for(settings: Settings, tmp_path: Path) -> None:
    rows = ["ann,b,2026-01-02", "ann,a,2026-01-02", "bob,c,2026-01-02"]
    imports.events(settings, lines(tmp_path / "e.csv", *rows), MAPPING.model_copy(update={"keep_order": True}))
    ann = Lake(settings.lake).read("raw_interactions").filter(pl.col("user_id") == "ann")
    assert ann["item_id"].to_list() == ["b", "a"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user": "whoo"}, r"no column 'whoo' for --user; it has 'who', 'what', 'when'; did you mean 'who'"),
        ({"price": "cost"}, "no column 'cost' for --price"),
        ({"category": ("shelf",)}, "no column 'shelf' for --category;"),
        ({"event_type": "kidn"}, "no column 'kidn' for --event-type .which may also be one of impression, view"),
        ({"event_type": "purchse"}, "did you mean 'purchase'"),
        ({"separator": ";"}, r"expected columns between ';', .*'who,what,when'; there ',' seems to be one; correct"),
        ({"items": "nowhere.csv"}, "nowhere.csv: expected a CSV or Parquet file"),
    ],
)
def test_a_wrong_mapping_says_what_there_is(
    settings: Settings, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = lines(tmp_path / "e.csv", "ann,tea,2026-01-02")
    with pytest.raises(SourceError, match=said):
        imports.events(settings, path, MAPPING.model_copy(update=change))
    assert sources.registered(settings.lake) == {}, "what could not be read is not registered"
    assert Lake(settings.lake).version("raw_interactions") is None


def test_a_mapping_refuses_keys_it_does_not_know() -> None:
    with pytest.raises(SourceError, match=r"--usr: no such column of a mapping; it may have user, item, time"):
        read_mapping(user="a", item="b", time="c", usr="d")
    with pytest.raises(SourceError, match="--time: field required"):
        read_mapping(user="a", item="b", price=None)
    with pytest.raises(SourceError, match=r"--time-zone: no time zone 'Europe/Berln'.* did you mean Europe/Berlin"):
        read_mapping(user="a", item="b", time="c", time_zone="Europe/Berln")


def test_a_wrong_column_of_a_catalogue_names_the_catalogues_options(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "e.csv", "ann,t1,2026-01-02")
    items = lines(tmp_path / "items.csv", "t1,Tea", header="sku;name").replace(",", ";")
    for change, said in (
        ({}, "no column 'what' for --items-id"),
        ({"items_id": "sku", "items_time": "since"}, "no column 'since' for --items-time"),
        ({"items_id": "sku", "item_attributes": ("brand",)}, "no column 'brand' for --item-attributes"),
    ):
        with pytest.raises(SourceError, match=f"items.csv: {said}"):
            imports.events(settings, path, MAPPING.model_copy(update={"items": items, **change}))


def test_an_accent_in_a_files_name_is_left_off_in_its_sources(settings: Settings, tmp_path: Path) -> None:
    imports.events(settings, lines(tmp_path / "Verkäufe été.csv", "ann,tea,2026-01-02"), MAPPING)
    assert list(sources.registered(settings.lake)) == ["Verkaufe-ete"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "expected at least one event, found none"),
        (["ann,tea,2026-01-02", "ann,tea,soon"], r"column 'when', row 2: expected a time, found 'soon'"),
        (["ann,tea,"], "holds no time at all"),
    ],
)
def test_unreadable_events_are_refused(settings: Settings, tmp_path: Path, rows: list[str], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        imports.events(settings, lines(tmp_path / "e.csv", *rows), MAPPING)


def test_a_missing_file_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"absent\.csv: expected a CSV or Parquet file or folder, found nothing"):
        imports.events(settings, str(tmp_path / "absent.csv"), MAPPING)


# ---------------------------------------------------------------- the register


def test_a_night_reads_only_the_source_it_names(settings: Settings, tmp_path: Path) -> None:
    for name in ("web", "app"):
        imports.events(settings, lines(tmp_path / f"{name}.csv", f"{name},tea,2026-01-02"), MAPPING, name=name)
        lines(tmp_path / f"{name}.csv", f"{name},tea,2026-01-02", f"{name},tea,2026-01-03")
    assert ingest.run(settings, NIGHT.model_copy(update={"source": "web"}))["interactions"] == 1
    assert ingest.run(settings, NIGHT)["interactions"] == 1
    with pytest.raises(SourceError, match=r"no source 'wep'; registered: app, web; did you mean 'web'"):
        ingest.run(settings, NIGHT.model_copy(update={"source": "wep"}))


def test_a_night_without_any_source_says_what_to_run(settings: Settings) -> None:
    with pytest.raises(SourceError, match="evensong import"):
        ingest.run(settings, NIGHT)


def test_a_registered_file_that_vanished_is_named(settings: Settings, tmp_path: Path) -> None:
    imports.events(settings, lines(tmp_path / "e.csv", "ann,tea,2026-01-02"), MAPPING)
    (tmp_path / "e.csv").unlink()
    with pytest.raises(SourceError, match=r"e\.csv: expected a CSV or Parquet file or folder, found nothing"):
        ingest.run(settings, NIGHT)


def test_two_locations_of_one_name_become_two_sources(settings: Settings, tmp_path: Path) -> None:
    for folder in ("a", "b", "a"):
        imports.events(settings, lines(tmp_path / folder / "e.csv", f"{folder},tea,2026-01-02"), MAPPING)
    assert list(sources.registered(settings.lake)) == ["e", "e-2"]
    with pytest.raises(SourceError, match="letters"):
        imports.events(settings, str(tmp_path / "a" / "e.csv"), MAPPING, name="a/b")


def test_a_name_belongs_to_one_place(settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = lines(tmp_path / "a" / "e.csv", "ann,tea,2026-01-02")
    imports.events(settings, first, MAPPING, name="shop")
    other = lines(tmp_path / "b" / "e.csv", "bob,tea,2026-01-02")
    with pytest.raises(SourceError, match=rf"source 'shop' is events {first}, asked for events {other}; .*remove shop"):
        imports.events(settings, other, MAPPING, name="shop")
    assert Lake(settings.lake).read("raw_interactions").height == 1
    imports.events(settings, first, MAPPING.model_copy(update={"event_type": "click"}), name="shop")
    assert sources.registered(settings.lake)["shop"].mapping.event_type == "click", "its mapping may change"  # type: ignore[union-attr]
    assert "source shop has another mapping now; the rows that it brought before stay" in caplog.text
    assert "import all sources into a fresh EVENSONG_HOME" in caplog.text
    caplog.clear()
    with pytest.raises(SourceError, match="no column 'whoo'"):
        imports.events(settings, first, MAPPING.model_copy(update={"user": "whoo"}), name="shop")
    assert "another mapping" not in caplog.text, "the mapping is the one before: nothing was imported"
    with pytest.raises(SourceError, match="'all': it means every source"):
        imports.events(settings, other, MAPPING, name="all")
    imports.events(settings, lines(tmp_path / "all.csv", "bob,tea,2026-01-02"), MAPPING)
    assert list(sources.registered(settings.lake)) == ["events-all", "shop"]


def test_a_source_that_is_removed_is_read_no_more_and_its_rows_stay(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "e.csv", "ann,tea,2026-01-02")
    imports.events(settings, path, MAPPING, name="shop")
    assert [row["name"] for row in imports.listed(settings)] == ["shop"]
    assert imports.listed(settings)[0]["mapping"] == {"user": "who", "item": "what", "time": "when"}
    (tmp_path / "e.csv").unlink()
    with pytest.raises(SourceError, match=r"source shop: .*e\.csv: .*`evensong import remove shop`"):
        ingest.run(settings, NIGHT)
    assert imports.remove(settings, "shop") == {"removed": "shop", "location": path}
    assert imports.listed(settings) == []
    assert ingest.run(settings, NIGHT) == {"interactions": 0, "items": 0, "users": 0}
    assert Lake(settings.lake).read("raw_interactions").height == 1
    for name in ("shop", "all"):
        with pytest.raises(SourceError):
            imports.remove(settings, name)


def test_imports_at_once_are_all_registered(settings: Settings, tmp_path: Path) -> None:
    def bring(number: int) -> None:
        imports.events(settings, lines(tmp_path / f"s{number}.csv", f"u{number},tea,2026-01-02"), MAPPING)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(bring, range(6)))
    assert list(sources.registered(settings.lake)) == [f"s{number}" for number in range(6)]
    assert Lake(settings.lake).read("raw_interactions").height == 6


def test_of_two_places_that_take_a_name_at_once_one_is_told(settings: Settings, tmp_path: Path) -> None:
    paths = [lines(tmp_path / folder / "e.csv", "ann,tea,2026-01-02") for folder in ("a", "b")]
    first, second = (sources.describe(settings.lake, "events", path, MAPPING, "shop") for path in paths)
    sources.note(settings.lake, first)
    with pytest.raises(SourceError, match="source 'shop' is"):
        sources.note(settings.lake, second)
    assert sources.registered(settings.lake)["shop"] == first


def test_a_register_of_before_is_read_and_parted(settings: Settings) -> None:
    old = {"sources": {name: {"kind": "contract", "location": f"/{name}", "mapping": None} for name in ("a", "b")}}
    storage.write_json(f"{settings.lake}/sources.json", old)
    assert list(sources.registered(settings.lake)) == ["a", "b"]
    sources.register(settings.lake, "contract", "/c")
    imports.remove(settings, "a")
    assert list(sources.registered(settings.lake)) == ["b", "c"]
    assert not storage.exists(f"{settings.lake}/sources.json")


def test_sources_of_another_kind_in_one_home_are_named(settings: Settings, tmp_path: Path) -> None:
    assert imports.strangers(settings, "events") is None
    sources.register(settings.lake, "contract", str(tmp_path), name="simulator")
    assert imports.strangers(settings, "contract") is None
    said = imports.strangers(settings, "events")
    assert said is not None
    assert "the data of simulator" in said
    assert "EVENSONG_HOME=" in said


def test_a_place_that_nothing_reads_is_refused_by_its_scheme(settings: Settings, tmp_path: Path) -> None:
    for place in ("https://shop.example/e.csv", "gs://bucket/e.csv", "hdfs://host/e"):
        scheme = place.partition("://")[0]
        with pytest.raises(SourceError, match=f"{scheme}:// is not read; expected a path, s3://bucket/prefix"):
            imports.events(settings, place, MAPPING)
        with pytest.raises(SourceError, match=f"{scheme}://"):
            imports.movielens(settings, place)
    with pytest.raises(SourceError, match="expected a path or s3://bucket/prefix for online-retail"):
        imports.online_retail(settings, "postgresql://host/shop")
    path = lines(tmp_path / "my shop" / "e.csv", "ann,tea,2026-01-02")
    assert imports.events(settings, f"file://{path.replace(' ', '%20')}", MAPPING)["interactions"] == 1
    assert sources.registered(settings.lake)["e"].location == path


def test_a_register_that_was_broken_by_hand_is_refused(settings: Settings) -> None:
    sources.register(settings.lake, "contract", "somewhere")
    path = Path(settings.lake) / "sources" / "somewhere.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "magic"}))
    with pytest.raises(SourceError, match=r"somewhere\.json: expected the register"):
        sources.registered(settings.lake)


def test_a_simulated_day_counts_from_its_record_on(settings: Settings, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    row = {"user_id": "ann", "item_id": "tea", "event_type": "view", "event_timestamp": at(1)}
    for day in (1, 2):
        frame = conform("interactions", pl.DataFrame([row | {"event_timestamp": at(day)}]))
        storage.write_frame(str(shop / "interactions" / f"2026-01-0{day}.parquet"), frame)
    storage.write_json(str(shop / "shop.json"), {})
    storage.write_json(str(shop / "days" / "2026-01-01.json"), {})
    sources.register(settings.lake, "contract", str(shop))
    assert ingest.run(settings, NIGHT)["interactions"] == 1
    storage.write_json(str(shop / "days" / "2026-01-02.json"), {})
    assert ingest.run(settings, NIGHT)["interactions"] == 1


def test_a_folder_in_the_contracts_columns_needs_no_mapping(settings: Settings, tmp_path: Path) -> None:
    row = {"user_id": "ann", "item_id": "tea", "event_type": "view", "event_timestamp": at(1)}
    for day in (1, 2):
        folder = tmp_path / "shop" / "interactions"
        folder.mkdir(parents=True, exist_ok=True)
        conform("interactions", pl.DataFrame([row | {"event_timestamp": at(day)}])).write_parquet(
            folder / f"{day}.parquet"
        )
        sources.register(settings.lake, "contract", str(tmp_path / "shop"), name="shop")
        assert ingest.run(settings, NIGHT) == {"interactions": 1, "items": 0, "users": 0}
    pl.DataFrame([row | {"colour": "red"}]).write_parquet(folder / "3.parquet")
    with pytest.raises(SourceError, match=r"3\.parquet.*unknown: colour"):
        ingest.run(settings, NIGHT)


def test_a_read_that_was_killed_before_its_note_is_repeated_and_adds_nothing_twice(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines(tmp_path / "e.csv", "ann,tea,2026-01-02", "ann,tea,2026-01-02")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ingest.storage, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            imports.events(settings, path, MAPPING)
    assert imports.events(settings, path, MAPPING) == {"interactions": 0, "items": 0, "users": 0}
    assert Lake(settings.lake).read("raw_interactions")["repeat"].to_list() == [0, 1]


# ---------------------------------------------------------------- MovieLens


def ml_100k(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "u.data").write_text("1\t10\t5\t875000000\n2\t11\t3\t875000100\n1\t12\t4\t880000000\n")
    flags = {"10": "0|0|0|1|1|1" + "|0" * 13, "11": "0|1" + "|0" * 17, "12": "1" + "|0" * 18, "13": "0|1" + "|0" * 17}
    dates = {"10": "01-Jan-1995", "11": "", "12": "01-Jan-1999", "13": "01-Jan-1998"}
    rows = [f"{key}|Film {key} (1995)|{dates[key]}||http://x|{flags[key]}" for key in flags]
    (folder / "u.item").write_bytes(("\n".join(rows).replace("Film 11", "Café 11") + "\n").encode("latin-1"))
    (folder / "u.user").write_text("1|24|M|technician|85711\n2|53|F|other|94043\n")
    return str(folder)


def test_movielens_100k_becomes_ratings_movies_and_users(settings: Settings, tmp_path: Path) -> None:
    assert imports.movielens(settings, ml_100k(tmp_path / "ml")) == {"interactions": 3, "items": 4, "users": 2}
    lake = Lake(settings.lake)
    begin = datetime.fromtimestamp(875000000, UTC)
    assert lake.read("raw_interactions").row(0)[:5] == ("1", "10", "rating", begin, 5.0)
    items = {row["item_id"]: row for row in lake.read("raw_items").iter_rows(named=True)}
    assert items["10"]["category_path"] == "Animation > Children's > Comedy"
    assert items["11"]["title"] == "Café 11 (1995)"
    assert json.loads(lake.read("raw_users")["attributes"][0]) == {
        "age": 24, "gender": "M", "occupation": "technician", "zip": "85711",
    }  # fmt: skip


def test_a_movie_is_known_from_its_release_or_first_rating_on(settings: Settings, tmp_path: Path) -> None:
    imports.movielens(settings, ml_100k(tmp_path / "ml"))
    known = dict(Lake(settings.lake).read("raw_items").select("item_id", "event_timestamp").iter_rows())
    begin = datetime.fromtimestamp(875000000, UTC)
    assert known["10"] == known["11"] == begin, "released before the data begins"
    assert known["12"] == datetime.fromtimestamp(880000000, UTC), "rated before its listed release"
    assert known["13"] == datetime(1998, 1, 1, tzinfo=UTC), "never rated, released later"


def test_movielens_1m_is_read_in_both_of_its_forms(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::10::5::978300760\n1::11::3::978300760\n")
    (folder / "movies.dat").write_bytes(
        "10::Toy Story (1995)::Animation|Comedy\n11::Älg (2000)::Drama\n".encode("latin-1")
    )
    (folder / "users.dat").write_text("1::F::1::10::48067\n")
    assert imports.movielens(settings, str(folder)) == {"interactions": 2, "items": 2, "users": 1}
    assert json.loads(Lake(settings.lake).read("raw_users")["attributes"][0])["occupation"] == "K-12 student"
    (folder / "ratings.dat").unlink()
    pl.DataFrame(
        {"user_id": [1, 1], "movie_id": [11, 10], "rating": [3, None], "timestamp": [at(1), at(1)]}
    ).write_parquet(folder / "interactions.parquet")
    other = Settings(home=tmp_path / "other")
    imports.movielens(other, str(folder))
    assert Lake(other.lake).read("raw_interactions")["item_id"].to_list() == ["11", "10"], "the file's order is exact"


def test_a_movielens_folder_that_lacks_a_file_says_which(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected a MovieLens folder with one of u\.data.*no such folder"):
        imports.movielens(settings, str(tmp_path / "absent"))
    folder = Path(ml_100k(tmp_path / "ml"))
    (folder / "u.user").unlink()
    with pytest.raises(SourceError, match=r"u\.user: expected this file of MovieLens 100K"):
        imports.movielens(settings, str(folder))
    shutil.rmtree(folder)
    ml_100k(folder)
    (folder / "u.data").write_text("1,10,5,875000000\n")
    with pytest.raises(SourceError, match=r"u\.data: row 1: expected 4 fields"):
        imports.movielens(settings, str(folder))


# ---------------------------------------------------------------- Online Retail


def retail(path: Path, *rows: tuple[str | None, int, str, float, float | None]) -> str:
    names = ["Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID"]
    frame = pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
    frame.with_columns(pl.col("InvoiceDate").str.to_datetime(), Country=pl.lit("France")).write_parquet(path)
    return str(path)


def test_online_retail_keeps_its_dirt_for_validation(settings: Settings, tmp_path: Path) -> None:
    path = retail(
        tmp_path / "r.parquet",
        (" RED  Mug ", 2, "2011-01-03 10:00:00", 1.5, 17850.0),
        ("RED MUG", -1, "2011-01-04 10:00:00", 1.5, 17850.0),
        ("POSTAGE", 1, "2011-01-04 10:00:00", 18.0, 12583.0),
        ("damaged", -30, "2011-01-05 10:00:00", 0.0, None),
        (None, 1, "2011-01-05 10:00:00", 0.0, None),
    )
    assert imports.online_retail(settings, path) == {"interactions": 5, "items": 2, "users": 2}
    lake = Lake(settings.lake)
    events = lake.read("raw_interactions").select("user_id", "item_id", "event_type", "value").rows()
    assert ("17850", "red-mug", "purchase", 3.0) in events
    assert ("17850", "red-mug", "return", -1.5) in events
    assert (None, None, "purchase", 0.0) in events
    items = {row["item_id"]: row for row in lake.read("raw_items").iter_rows(named=True)}
    assert items["red-mug"]["title"] == "RED Mug"
    assert items["red-mug"]["price"] == 1.5
    assert items["postage"]["attributes"] == '{"product":false}'
    assert "damaged" not in items, "never sold, so never an item"


def test_online_retail_as_csv_has_codes_and_invoices(settings: Settings, tmp_path: Path) -> None:
    path = lines(
        tmp_path / "r.csv",
        "536365,85123a,WHITE HANGING HEART,6,12/1/2010 8:26,2.55,17850,United Kingdom",
        header="InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country",
    )
    imports.online_retail(settings, path)
    event = Lake(settings.lake).read("raw_interactions").row(0, named=True)
    assert (event["item_id"], event["session_id"]) == ("85123A", "536365")
    assert event["event_timestamp"] == datetime(2010, 12, 1, 8, 26, tzinfo=UTC)


def test_online_retail_with_other_columns_is_refused(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "r.csv", "x,1", header="Description,Qty")
    with pytest.raises(SourceError, match="no column 'Quantity'"):
        imports.online_retail(settings, path)


def test_a_lake_that_is_no_lake_is_an_error_of_storage(tmp_path: Path) -> None:
    (tmp_path / "raw_items" / "_delta_log").mkdir(parents=True)
    (tmp_path / "raw_items" / "_delta_log" / "00000000000000000000.json").write_text("{broken")
    with pytest.raises(StorageError, match="cannot be opened"):
        Lake(str(tmp_path)).read("raw_items")
