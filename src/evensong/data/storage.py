"""Files and folders behind a URI: a local path, or `s3://bucket/key` with boto3's own chain of credentials."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import boto3
import polars as pl
from botocore.exceptions import ClientError

from evensong.errors import StorageError
from evensong.types import Frame


def is_remote(uri: str) -> bool:
    """Whether the URI leaves this machine's file system."""
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """A place below a URI."""
    return "/".join([uri.rstrip("/"), *parts])


def storage_options(uri: str) -> dict[str, str]:
    """What polars and deltalake need to reach the URI: empty for a local path, boto3's credentials for S3."""
    if not is_remote(uri):
        return {}
    session = boto3.Session()
    options = {"aws_region": session.region_name or "us-east-1", "aws_conditional_put": "etag"}
    if credentials := session.get_credentials():
        frozen = credentials.get_frozen_credentials()
        options |= {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
        if frozen.token:
            options["aws_session_token"] = frozen.token
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        options["aws_endpoint_url"] = endpoint
        if endpoint.startswith("http://"):
            options["aws_allow_http"] = "true"
    return options


def exists(uri: str) -> bool:
    """Whether a file or a folder with content is there."""
    if not is_remote(uri):
        return Path(uri).exists()
    bucket, key = _split(uri)
    found = _client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1000).get("Contents", [])
    return any(entry["Key"] == key or entry["Key"].startswith(key.rstrip("/") + "/") for entry in found)


def read_bytes(uri: str) -> bytes:
    """The content of one file.

    Raises:
        StorageError: nothing is there.
    """
    try:
        if not is_remote(uri):
            return Path(uri).read_bytes()
        bucket, key = _split(uri)
        content: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return content
    except (FileNotFoundError, ClientError) as error:
        raise StorageError(f"{uri}: expected a file, found none; run the step that writes it first") from error


def write_bytes(uri: str, content: bytes) -> str:
    """Write one file, whole or not at all, and return its URI."""
    if is_remote(uri):
        bucket, key = _split(uri)
        _client().put_object(Bucket=bucket, Key=key, Body=content)
        return uri
    path = Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.write_bytes(content)
    draft.replace(path)
    return uri


def create_bytes(uri: str, content: bytes) -> str:
    """Write one file that must not be there yet; of two writers at once exactly one succeeds.

    Raises:
        StorageError: it is there already.
    """
    taken = StorageError(f"{uri}: expected nothing there, found a file; another process wrote it first")
    if is_remote(uri):
        bucket, key = _split(uri)
        try:
            _client().put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412):
                raise taken from error
            raise
        return uri
    path = Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.write_bytes(content)
    try:
        os.link(draft, path)
    except FileExistsError as error:
        raise taken from error
    finally:
        draft.unlink()
    return uri


def remove(uri: str) -> None:
    """Remove one file; nothing happens when there is none."""
    if is_remote(uri):
        bucket, key = _split(uri)
        _client().delete_object(Bucket=bucket, Key=key)
    else:
        Path(uri).unlink(missing_ok=True)


def remove_folder(uri: str) -> None:
    """Remove a folder with everything below it; nothing happens when there is none."""
    if is_remote(uri):
        bucket, prefix = _split(uri)
        for key in _keys(bucket, prefix.rstrip("/") + "/"):
            _client().delete_object(Bucket=bucket, Key=key)
    elif Path(uri).exists():
        shutil.rmtree(uri)


def read_json(uri: str) -> Any:
    """The content of a JSON file."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> str:
    """Write a value as JSON, keys sorted, whole or not at all."""
    return write_bytes(uri, json.dumps(value, indent=2, sort_keys=True, default=str).encode())


def read_frame(uri: str) -> Frame:
    """A Parquet file as a frame."""
    if not exists(uri):
        raise StorageError(f"{uri}: expected a Parquet file, found none; run the step that writes it first")
    return pl.read_parquet(uri, storage_options=storage_options(uri))


def write_frame(uri: str, frame: Frame) -> str:
    """Write a frame as Parquet, whole or not at all."""
    if is_remote(uri):
        frame.write_parquet(uri, storage_options=storage_options(uri))
        return uri
    path = Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    frame.write_parquet(draft)
    draft.replace(path)
    return uri


def write_folder(source: Path, uri: str) -> str:
    """Put a local folder at the URI in place of what was there, so that a reader never sees half of each.

    Locally the folder is moved into place. On S3 the objects are written and then those that are no longer part of it
    are removed; a step's own JSON marker, written after this returns, is what says that the folder is complete.
    """
    if not is_remote(uri):
        target = Path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        shutil.copytree(source, draft)
        if target.exists():
            old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
            target.rename(old)
            draft.rename(target)
            shutil.rmtree(old)
        else:
            draft.rename(target)
        return uri
    bucket, prefix = _split(uri)
    prefix = prefix.rstrip("/") + "/"
    written = set()
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        key = prefix + path.relative_to(source).as_posix()
        _client().upload_file(str(path), bucket, key)
        written.add(key)
    for key in _keys(bucket, prefix):
        if key not in written:
            _client().delete_object(Bucket=bucket, Key=key)
    return uri


def fetch_folder(uri: str, target: Path) -> Path:
    """A local folder with the content of the URI: the folder itself when it is local, a copy in `target` otherwise."""
    if not is_remote(uri):
        if not Path(uri).is_dir():
            raise StorageError(f"{uri}: expected a folder, found none; run the step that writes it first")
        return Path(uri)
    bucket, prefix = _split(uri)
    prefix = prefix.rstrip("/") + "/"
    keys = list(_keys(bucket, prefix))
    if not keys:
        raise StorageError(f"{uri}: expected objects below this prefix, found none; run the step that writes it first")
    for key in keys:
        path = target / key.removeprefix(prefix)
        if not path.resolve().is_relative_to(target.resolve()):
            raise StorageError(f"{uri}: the key {key} points outside the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        _client().download_file(bucket, key, str(path))
    return target


def fingerprint(uri: str) -> str:
    """A mark of a file that changes when the file does: size and time of change, or S3's ETag."""
    if not is_remote(uri):
        found = Path(uri).stat()
        return f"{found.st_size}-{found.st_mtime_ns}"
    bucket, key = _split(uri)
    return str(_client().head_object(Bucket=bucket, Key=key)["ETag"])


def list_files(uri: str) -> list[str]:
    """The URIs of all files below a folder, sorted."""
    if not is_remote(uri):
        return sorted(str(p) for p in Path(uri).rglob("*") if p.is_file())
    bucket, prefix = _split(uri)
    return sorted(f"s3://{bucket}/{key}" for key in _keys(bucket, prefix.rstrip("/") + "/"))


def sizes(uri: str) -> dict[str, int]:
    """The bytes of each file below a folder, by URI."""
    if not is_remote(uri):
        return {str(path): path.stat().st_size for path in Path(uri).rglob("*") if path.is_file()}
    bucket, prefix = _split(uri)
    pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix.rstrip("/") + "/")
    return {f"s3://{bucket}/{entry['Key']}": entry["Size"] for page in pages for entry in page.get("Contents", [])}


def _client() -> Any:
    return boto3.client("s3")


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _keys(bucket: str, prefix: str) -> list[str]:
    pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]
