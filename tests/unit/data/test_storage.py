"""What a store answers when it is not as expected is said in words that help, and never a traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import polars as pl
import pytest
from tests.variants import first_daily

from evensong.data import storage
from evensong.data.lake import Lake, conform
from evensong.errors import SourceError, StorageError
from evensong.pipelines import imports
from evensong.settings import Settings

ROWS = conform(
    "interactions",
    pl.DataFrame({"user_id": ["ann"], "item_id": ["tea"], "event_timestamp": [datetime(2026, 1, 1, tzinfo=UTC)]}),
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A real S3 server on loopback with the bucket `storeroom`; servers of one process share what they hold."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    client.create_bucket(Bucket="storeroom")
    client.put_object(Bucket="storeroom", Key="in/e.csv", Body=b"who,what,when\nann,tea,2026-01-01\n")
    yield url
    server.stop()


@pytest.fixture
def s3(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its address, found as boto3 finds it, by nothing but the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "HOME": str(tmp_path),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(name, value)
    # boto3 keeps the credentials that it found first
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    return endpoint


def every_use(uri: str) -> Iterator[str]:
    """What each way of reaching a place says when it fails."""
    for use in (
        lambda: storage.exists(uri),
        lambda: storage.is_file(uri),
        lambda: storage.read_bytes(uri),
        lambda: storage.write_bytes(uri, b""),
        lambda: storage.create_bytes(uri, b""),
        lambda: storage.list_files(uri),
        lambda: storage.fingerprint(uri),
        lambda: storage.read_frame(uri),
        lambda: storage.write_frame(uri, ROWS),
        lambda: Lake(uri).version("interactions"),
        lambda: Lake(uri).read("interactions"),
        lambda: Lake(uri).append_new("interactions", ROWS),
    ):
        with pytest.raises(StorageError) as error:
            use()
        yield str(error.value)


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    for said in every_use("s3://no-bucket/lake"):
        assert f"expected the bucket no-bucket at {s3}, it is not there; create it" in said or "found none" in said
    with pytest.raises(SourceError, match=r"s3://no-bucket/in/u\.data: expected the bucket no-bucket"):
        imports.movielens(Settings(home=Path("nowhere")), "s3://no-bucket/in")


def test_missing_credentials_are_asked_for(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for said in every_use("s3://storeroom/lake"):
        assert "no credentials for the bucket storeroom" in said
        assert "AWS_ACCESS_KEY_ID" in said


def test_a_store_that_does_not_answer_is_named_with_its_address(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", closed)
        for use in (storage.exists, storage.read_bytes, lambda uri: Lake(uri).version("interactions")):
            with pytest.raises(
                StorageError, match=rf"bucket storeroom at {closed} does not answer .* AWS_ENDPOINT_URL"
            ):
                use("s3://storeroom/lake")


def test_a_key_that_may_not_is_not_taken_for_a_file_that_is_missing(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)  # from now on it knows nobody
    for said in every_use("s3://storeroom/lake"):
        assert "bucket storeroom" in said
        assert "refuses (" in said
        assert "credentials" in said


def test_what_is_missing_in_a_bucket_that_is_there_is_a_missing_file(s3: str) -> None:
    with pytest.raises(StorageError, match="s3://storeroom/absent: expected a file, found none; run the step"):
        storage.read_bytes("s3://storeroom/absent")
    assert not storage.exists("s3://storeroom/absent")
    assert not storage.exists("s3://storeroom/i"), "a prefix that ends within a name is no folder"
    assert storage.exists("s3://storeroom/in")
    assert storage.exists("s3://storeroom")
    assert storage.is_file("s3://storeroom/in/e.csv")
    assert not storage.is_file("s3://storeroom/in")
    assert list(storage.fingerprints("s3://storeroom")) == ["s3://storeroom/in/e.csv"]


def test_a_local_place_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used: Not a directory"):
        storage.read_bytes(str(tmp_path / "file" / "below"))
    with pytest.raises(StorageError, match=r"cannot be used: (Not a directory|File exists)"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"")
    with pytest.raises(StorageError, match="cannot be used: Is a directory"):
        storage.read_bytes(str(tmp_path))
    with pytest.raises(StorageError, match="expected a Parquet file, cannot be read"):
        storage.read_frame(str(tmp_path / "file"))


@pytest.mark.parametrize(
    "command", first_daily([["import", "list"], ["import", "remove", "x"], ["nightly", "--as-of", "2026-01-01"]])
)
def test_a_command_whose_lake_does_not_answer_ends_without_a_traceback(tmp_path: Path, command: list[str]) -> None:
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "EVENSONG_HOME": str(tmp_path),
        "EVENSONG_LAKE_URI": "s3://storeroom/lake", "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "evensong.cli", *command], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert "the bucket storeroom at http://127.0.0.1:9 does not answer" in done.stderr
    assert "Traceback" not in done.stderr
