"""Files and folders behind a URI: a local path, or `s3://bucket/key` with boto3's own chain of credentials."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import boto3
import polars as pl
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from evensong.errors import BusyError, DamagedFileError, StorageError
from evensong.types import Frame

#: A store that does not answer is away after a minute or two; boto3's own patience is five times that of each attempt.
_PATIENCE = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 3})


class Access(NamedTuple):
    """Another way into S3 than boto3's own chain and the environment's endpoint; what is None is left to those."""

    endpoint: str | None = None
    key_id: str | None = None
    secret: str | None = None
    token: str | None = None
    region: str | None = None


def is_remote(uri: str) -> bool:
    """Whether the URI leaves this machine's file system."""
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """A place below a URI."""
    return "/".join([uri.rstrip("/"), *parts])


def storage_options(uri: str, access: Access | None = None) -> dict[str, str]:
    """What polars and deltalake need to reach the URI: empty for a local path, boto3's credentials for S3.

    Raises:
        StorageError: boto3 knows no credentials.
    """
    if not is_remote(uri):
        return {}
    session = _session(access)
    options = {"aws_region": session.region_name or "us-east-1", "aws_conditional_put": "etag"}
    with reaching(uri, access):
        credentials = session.get_credentials()
        if credentials is None:
            # left to themselves, they would look for a cloud's metadata service, and for long
            raise NoCredentialsError
        frozen = credentials.get_frozen_credentials()
    options |= {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
    if frozen.token:
        options["aws_session_token"] = frozen.token
    if endpoint := _endpoint(access):
        options["aws_endpoint_url"] = endpoint
        if endpoint.startswith("http://"):
            options["aws_allow_http"] = "true"
    return options


@contextmanager
def reaching(uri: str, access: Access | None = None) -> Iterator[None]:
    """Let what S3 or the file system answers about the URI be a StorageError that says what came and what to do."""
    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error, OSError) as error:
        raise StorageError(f"{uri}: {_said(uri, error, access)}") from error


def exists(uri: str, access: Access | None = None) -> bool:
    """Whether a file or a folder with content is there.

    Raises:
        StorageError: the place cannot be asked: no credentials, no bucket, no answer, no permission.
    """
    with reaching(uri, access):
        if not is_remote(uri):
            return Path(uri).exists()
        bucket, key = _split(uri)
        below = f"{key.rstrip('/')}/" if key else ""
        return _first_key(bucket, key, access) == key or _first_key(bucket, below, access) is not None


def is_file(uri: str, access: Access | None = None) -> bool:
    """Whether one file is there under this very URI."""
    with reaching(uri, access):
        if not is_remote(uri):
            return Path(uri).is_file()
        bucket, key = _split(uri)
        return _first_key(bucket, key, access) == key


def read_bytes(uri: str) -> bytes:
    """The content of one file.

    Raises:
        StorageError: nothing is there, or it cannot be read.
    """
    with reaching(uri):
        if not is_remote(uri):
            return Path(uri).read_bytes()
        bucket, key = _split(uri)
        content: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return content


def write_bytes(uri: str, content: bytes) -> str:
    """Write one file, whole or not at all, and return its URI."""
    with reaching(uri):
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
        if _put_if(uri, content, IfNoneMatch="*") is None:
            raise taken
        return uri
    with reaching(uri):
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


def remove(uri: str, access: Access | None = None) -> None:
    """Remove one file; nothing happens when there is none."""
    with reaching(uri, access):
        if is_remote(uri):
            bucket, key = _split(uri)
            _client(access).delete_object(Bucket=bucket, Key=key)
        else:
            Path(uri).unlink(missing_ok=True)


def remove_folder(uri: str) -> None:
    """Remove a folder with everything below it; nothing happens when there is none."""
    if is_remote(uri):
        bucket, prefix = _split(uri)
        with reaching(uri):
            for key in _marks(bucket, prefix.rstrip("/") + "/"):
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
    """A Parquet file as a frame.

    Raises:
        StorageError: nothing is there, or the store does not answer.
        DamagedFileError: it is no Parquet file.
    """
    if not exists(uri):
        raise StorageError(f"{uri}: expected a Parquet file, found none; run the step that writes it first")
    with reaching(uri):
        try:
            return pl.read_parquet(uri, storage_options=storage_options(uri))
        except pl.exceptions.PolarsError as error:
            read_bytes(uri)  # says so where it is the store that does not answer
            raise DamagedFileError(f"{uri}: expected a Parquet file, cannot be read: {_first_line(error)}") from error


def write_frame(uri: str, frame: Frame, *, compression: Literal["zstd", "snappy"] = "zstd") -> str:
    """Write a frame as Parquet, whole or not at all."""
    with reaching(uri):
        if is_remote(uri):
            frame.write_parquet(uri, compression=compression, storage_options=storage_options(uri))
            return uri
        path = Path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        frame.write_parquet(draft, compression=compression)
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
    with reaching(uri):
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            key = prefix + path.relative_to(source).as_posix()
            _client().upload_file(str(path), bucket, key)
            written.add(key)
        for key in _marks(bucket, prefix):
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
    with reaching(uri):
        keys = list(_marks(bucket, prefix))
    if not keys:
        raise StorageError(f"{uri}: expected objects below this prefix, found none; run the step that writes it first")
    for key in keys:
        path = target / key.removeprefix(prefix)
        if not path.resolve().is_relative_to(target.resolve()):
            raise StorageError(f"{uri}: the key {key} points outside the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with reaching(uri):
            _client().download_file(bucket, key, str(path))
    return target


def fingerprint(uri: str) -> str:
    """A mark of a file that changes when the file does: size and time of change, or S3's ETag.

    Raises:
        StorageError: it is gone, or cannot be asked.
    """
    with reaching(uri):
        if not is_remote(uri):
            return _mark(uri)
        bucket, key = _split(uri)
        return str(_client().head_object(Bucket=bucket, Key=key)["ETag"])


def fingerprints(uri: str, access: Access | None = None) -> dict[str, str]:
    """The URIs of all files below a folder, sorted, each with its mark.

    Raises:
        StorageError: the folder or one below it cannot be listed.
    """
    if not is_remote(uri):
        marks = {}
        for path in list_files(uri):
            # a draft may have moved to its place meanwhile
            with suppress(FileNotFoundError), reaching(uri):
                marks[path] = _mark(path)
        return marks
    bucket, prefix = _split(uri)
    with reaching(uri, access):
        found = _marks(bucket, f"{prefix.rstrip('/')}/" if prefix else "", access)
    return {f"s3://{bucket}/{key}": found[key] for key in sorted(found)}


def sizes(uri: str) -> dict[str, int]:
    """The bytes of each file below a folder, by URI.

    Raises:
        StorageError: the place cannot be asked.
    """
    with reaching(uri):
        if not is_remote(uri):
            return {str(path): path.stat().st_size for path in Path(uri).rglob("*") if path.is_file()}
        bucket, prefix = _split(uri)
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix.rstrip("/") + "/")
        found = [entry for page in pages for entry in page.get("Contents", [])]
    return {f"s3://{bucket}/{entry['Key']}": entry["Size"] for entry in found}


def list_files(uri: str, access: Access | None = None) -> list[str]:
    """The URIs of all files below a folder, sorted.

    Raises:
        StorageError: the folder or one below it cannot be listed.
    """
    if is_remote(uri):
        return list(fingerprints(uri, access))
    with reaching(uri):
        # `rglob` would pass over a folder that may not be read
        found = [os.path.join(folder, name) for folder, _, names in os.walk(uri, onerror=_fail) for name in names]
    return sorted(path for path in found if os.path.isfile(path))


@contextmanager
def lease(uri: str, *, seconds: float, wait_seconds: float) -> Iterator[None]:
    """Hold an object on S3 as a lock among machines; who died with it loses it `seconds` later, by the store's clock.

    The object stays; empty, it is free. It changes hands by conditional writes only: of two that want it one gets it.

    Raises:
        BusyError: another one still holds it after `wait_seconds`.
        StorageError: the store cannot be asked.
    """
    deadline = time.monotonic() + wait_seconds
    while (mark := _take(uri, seconds)) is None:
        if time.monotonic() >= deadline:
            raise BusyError(f"{uri}: another machine holds this lock, for {seconds:g} s at most; wait and try again")
        time.sleep(0.1)
    try:
        yield
    finally:
        # A lock that cannot be let go of now ends by itself; what was done under it is done.
        with suppress(StorageError):
            _put_if(uri, b"", IfMatch=mark)


def _take(uri: str, seconds: float) -> str | None:
    """The ETag of the lock that is ours now; none when another one holds it."""
    token = uuid.uuid4().hex.encode()
    if mark := _put_if(uri, token, IfNoneMatch="*"):
        return mark
    bucket, key = _split(uri)
    with reaching(uri):
        found = _client().head_object(Bucket=bucket, Key=key)
    now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
    if found["ContentLength"] and (now - found["LastModified"]).total_seconds() < seconds:
        return None
    return _put_if(uri, token, IfMatch=found["ETag"])


def _put_if(uri: str, content: bytes, **condition: str) -> str | None:
    """The ETag of what was written; none when the condition does not hold."""
    bucket, key = _split(uri)
    with reaching(uri):
        try:
            return str(_client().put_object(Bucket=bucket, Key=key, Body=content, **condition)["ETag"])
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412):
                return None
            raise


def _mark(path: str) -> str:
    found = Path(path).stat()
    return f"{found.st_size}-{found.st_mtime_ns}"


def _fail(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _said(uri: str, error: Exception, access: Access | None) -> str:
    """What an answer means, and what to do about it."""
    where = f"bucket {_split(uri)[0]} at {_endpoint(access) or 'AWS'}"
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        if code in ("NoSuchKey", "404", "NotFound"):
            return "expected a file, found none; run the step that writes it first"
        if code == "NoSuchBucket":
            return f"expected the {where}, it is not there; create it, or correct the URI or AWS_ENDPOINT_URL"
        if code in REFUSALS:
            return f"the {where} refuses ({code}); check boto3's credentials and what they may do there"
        return f"the {where} answers {code}: {_first_line(error)}; try again, or look at the store"
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return (
            f"no credentials for the {where}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or any other that "
            "boto3 reads"
        )
    if isinstance(error, HTTPClientError | ConnectionError):
        return f"the {where} does not answer ({_first_line(error)}); is the store up, and AWS_ENDPOINT_URL right?"
    if isinstance(error, OSError) and is_remote(uri):
        # polars and deltalake say little of what went wrong: ask the store itself
        try:
            _first_key(*_split(uri), access)
        except (ClientError, BotoCoreError) as answer:
            return _said(uri, answer, access)
        return f"the {where} cannot be used: {_first_line(error)}; try again, or look at the store"
    if isinstance(error, FileNotFoundError):
        return "expected a file, found none; run the step that writes it first"
    if isinstance(error, OSError):
        return f"cannot be used: {error.strerror or error}; correct the path or its permissions"
    return f"the {where} cannot be used: {_first_line(error)}; check the URI and boto3's configuration"


#: S3's words for a key that is wrong, has run out, or may not do this.
REFUSALS = (
    "403", "401", "AccessDenied", "AllAccessDisabled", "ExpiredToken", "Forbidden", "InvalidAccessKeyId",
    "InvalidClientTokenId", "InvalidToken", "SignatureDoesNotMatch", "Unauthorized",
)  # fmt: skip


def _first_line(error: object) -> str:
    return str(error).strip().split("\n")[0]


def _endpoint(access: Access | None = None) -> str | None:
    if access is not None and access.endpoint:
        return access.endpoint
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _session(access: Access | None) -> boto3.Session:
    access = access or Access()
    return boto3.Session(
        aws_access_key_id=access.key_id,
        aws_secret_access_key=access.secret,
        aws_session_token=access.token,
        region_name=access.region,
    )


def _client(access: Access | None = None) -> Any:
    if access is None:
        return boto3.client("s3", config=_PATIENCE)
    return _session(access).client("s3", endpoint_url=access.endpoint, config=_PATIENCE)


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _first_key(bucket: str, prefix: str, access: Access | None = None) -> str | None:
    """The first key that begins with the prefix; the prefix itself, where it is a key, sorts before all others."""
    listed = _client(access).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents", [])
    return str(listed[0]["Key"]) if listed else None


def _marks(bucket: str, prefix: str, access: Access | None = None) -> dict[str, str]:
    """The keys below a prefix with their ETags."""
    pages = _client(access).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {entry["Key"]: str(entry["ETag"]) for page in pages for entry in page.get("Contents", [])}
