"""The same rows from a real MariaDB give the same lake, and a grown table adds just what is new."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from evensong.data import sources, storage
from evensong.data.lake import Lake
from evensong.data.mapping import EventMapping
from evensong.errors import SourceError
from evensong.pipelines import imports, ingest
from evensong.settings import Settings
from evensong.types import Night

pytestmark = pytest.mark.slow

SECRET = "hunter:2@/"
NIGHT = Night(as_of=datetime(2026, 1, 12, tzinfo=UTC))
MAPPING = EventMapping(
    user="who",
    item="what",
    time="at",
    value="paid",
    request="id",
    event_type="kind",
    table="sales",
    time_zone="Asia/Tokyo",
)
CREATE = """create table sales (id bigint unsigned primary key, who bigint unsigned, what varchar(20), at datetime(6),
    kind enum('view', 'purchase'), paid decimal(10, 2), note json) character set utf8mb4"""
INSERT = "insert into sales values (%s, %s, %s, %s, %s, %s, %s)"
ROWS = [
    (1, 2**64 - 1, "müsli ☕", "2026-01-02 10:00:00.25", "purchase", "1.50", '{"a": 1}'),
    (2, 7, "tea", "2026-01-03 11:00:00", "view", None, None),
    (3, None, "tea", None, None, "2", None),
]


@pytest.fixture(scope="module")
def server() -> Iterator[sa.URL]:
    """MariaDB in a folder and on a port of its own, as nobody in particular, with a role that has a password."""
    if not (shutil.which("mariadbd") and shutil.which("mariadb-install-db")):
        pytest.skip("no mariadbd here (Debian: apt install mariadb-server): MYSQL IS NOT TESTED")
    folder = Path(tempfile.mkdtemp(prefix="mariadb-"))
    user = "nobody" if os.geteuid() == 0 else getpass.getuser()
    if user == "nobody":
        shutil.chown(folder, "nobody")
    plain = ["--no-defaults", f"--datadir={folder / 'data'}", f"--user={user}"]
    install = ["mariadb-install-db", *plain, "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(install, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = [f"--socket={folder / 's'}", f"--pid-file={folder / 'p'}", "--bind-address=127.0.0.1", f"--port={port}"]
    process = subprocess.Popen(
        [str(shutil.which("mariadbd")), *plain, *place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    root = sa.create_engine(f"mysql+pymysql://root@127.0.0.1:{port}/")
    try:
        for _ in range(300):
            try:
                with root.begin() as connection:
                    connection.exec_driver_sql("create database shop")
                    connection.exec_driver_sql("create user ann@'127.0.0.1' identified by %s", (SECRET,))
                    connection.exec_driver_sql("grant select on shop.* to ann@'127.0.0.1'")
                    connection.exec_driver_sql("use shop")
                    connection.exec_driver_sql(CREATE)
                    connection.exec_driver_sql(INSERT, ROWS)
                break
            except sa.exc.OperationalError:
                assert process.poll() is None, "MariaDB ended"
                time.sleep(0.1)
        yield sa.URL.create("mysql+pymysql", "ann", SECRET, "127.0.0.1", port, "shop")
    finally:
        root.dispose()
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


def test_mariadb_gives_its_rows_and_then_just_the_new_ones(
    server: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path)
    url = server.render_as_string(hide_password=False)
    assert imports.events(settings, url, MAPPING, name="shop") == {"interactions": 3, "items": 2, "users": 2}
    lake = Lake(settings.lake)
    found = lake.read("raw_interactions").sort("request_id").drop("session_id", "position", "propensity", "repeat")
    first, second = datetime(2026, 1, 2, 1, 0, 0, 250_000, tzinfo=UTC), datetime(2026, 1, 3, 2, tzinfo=UTC)
    assert found.select("user_id", "item_id", "event_type", "event_timestamp", "value", "request_id").rows() == [
        (str(2**64 - 1), "müsli ☕", "purchase", first, 1.5, "1"),
        ("7", "tea", "view", second, None, "2"),
        (None, "tea", None, None, 2.0, "3"),
    ]
    for uri in storage.list_files(settings.lake):
        assert b"hunter" not in storage.read_bytes(uri), uri
    monkeypatch.setenv("SOURCE_SHOP_PASSWORD", SECRET)
    assert ingest.run(settings, NIGHT) == {"interactions": 0, "items": 0, "users": 0}
    engine = sa.create_engine(server.set(username="root", password=""))
    with engine.begin() as connection:
        connection.exec_driver_sql(INSERT, (4, 7, "jam", "2026-01-04 12:00:00", "purchase", "3", None))
    engine.dispose()
    assert ingest.run(settings, NIGHT) == {"interactions": 1, "items": 1, "users": 0}
    assert imports.events(settings, url.replace("mysql+pymysql", "mariadb"), MAPPING, name="other")["interactions"] == 0
    assert "mariadb://ann:***@" in sources_of(settings)["other"]


def test_a_wrong_password_or_table_is_told_without_the_password(server: sa.URL, tmp_path: Path) -> None:
    wrong = server.set(password="guess").render_as_string(hide_password=False)
    with pytest.raises(
        SourceError, match=r"mysql\+pymysql://ann:\*\*\*@127.*Access denied.*check the address"
    ) as error:
        imports.events(Settings(home=tmp_path), wrong, MAPPING)
    assert "guess" not in str(error.value)
    url = server.render_as_string(hide_password=False)
    with pytest.raises(SourceError, match="no table 'sale'; it has sales; did you mean 'sales'"):
        imports.events(Settings(home=tmp_path), url, MAPPING.model_copy(update={"table": "sale"}))
    assert sources.registered(Settings(home=tmp_path).lake) == {}


def sources_of(settings: Settings) -> dict[str, str]:
    return {row["name"]: row["location"] for row in imports.listed(settings)}
