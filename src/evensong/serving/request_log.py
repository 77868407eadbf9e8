"""Writes the sampled log of requests; `evensong.monitoring.request_log` says what a line holds, and reads it."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from evensong.data import storage
from evensong.monitoring.request_log import clear_out, is_sampled, place
from evensong.serving.metrics import Metrics
from evensong.settings import Settings

log = logging.getLogger("evensong.serving")

_WAITING = 1000
#: After so long without a record the next request is logged whatever the sample says: the skew check is to have
#: something to replay wherever anything is served.
WITNESS_SECONDS = 600.0
#: An object store takes whole objects, so records wait for each other there.
REMOTE_SECONDS = 5.0
_CLEAR_OUT_SECONDS = 60.0


class RequestLog:
    """Writes records from a thread of its own; a request never waits for the disk and never fails for the log."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._place = place(settings)
        self._sample = settings.serving.request_log_sample
        self._per_second = settings.serving.request_log_per_second
        self._metrics = metrics
        self._metrics.request_log_sample.set(self._sample)
        self._metrics.request_log_per_second.set(self._per_second)
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._tokens, self._filled = self._per_second, time.monotonic()
        self._lock = threading.Lock()
        self._logged: float | None = None
        """When the last record was taken."""
        self._told = False
        self._cleared = 0.0
        self._writer = f"{socket.gethostname()}-{os.getpid()}"

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, and end."""
        if self._thread:
            self._queue.put(None)
            self._thread.join(timeout=10)
            self._thread = None

    def take(self, request_id: str, record: Callable[[], dict[str, Any]]) -> None:
        """Log the request if it is in the sample; whatever goes wrong costs the record and not the request.

        Args:
            record: makes the fields of `Record`.
        """
        try:
            if self.wants(request_id):
                self._queue.put(record())
        except Exception as error:
            self._metrics.requests_not_logged.inc()
            self._tell(f"request {request_id} cannot be logged ({type(error).__name__}: {error})")

    def wants(self, request_id: str) -> bool:
        """Whether this request is to be logged. The id decides, so a retry with the same id falls on the same side."""
        if self._thread is None:
            return False
        with self._lock:
            now = time.monotonic()
            witness = self._logged is None or now - self._logged >= WITNESS_SECONDS
            if not witness and not is_sampled(request_id, self._sample):
                return False
            self._tokens = min(max(self._per_second, 1.0), self._tokens + (now - self._filled) * self._per_second)
            self._filled = now
            if (self._tokens < 1 and not witness) or self._queue.qsize() >= _WAITING:
                self._metrics.requests_not_logged.inc()
                return False
            self._tokens = max(0.0, self._tokens - 1)
            self._logged = now
            return True

    def _run(self) -> None:
        while (record := self._queue.get()) is not None:
            records = [record]
            ended = self._gather(records)
            self._write(records)
            if ended:
                return

    def _gather(self, records: list[dict[str, Any]]) -> bool:
        """Take what else waits, or comes while it is worth waiting; whether the end came."""
        until = time.monotonic() + (REMOTE_SECONDS if storage.is_remote(self._place) else 0.0)
        while True:
            try:
                more = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return False
            if more is None:
                return True
            records.append(more)

    def _write(self, records: list[dict[str, Any]]) -> None:
        lines = [line for record in records if (line := self._line(record)) is not None]
        if not lines:
            return
        try:
            self._append(b"".join(lines))
        except Exception as error:  # a thread that ends would end the log
            self._metrics.requests_not_logged.inc(len(lines))
            self._tell(
                f"the request log cannot be written ({type(error).__name__}: {error}); free the disk, or correct the "
                f"rights of {self._place}"
            )
            return
        self._metrics.requests_logged.inc(len(lines))
        self._told = False
        if time.monotonic() - self._cleared >= _CLEAR_OUT_SECONDS or not self._cleared:
            self._cleared = time.monotonic()
            try:
                clear_out(self._settings)
            except Exception as error:
                self._tell(f"old files of the request log cannot be removed ({error}); look at {self._place}")

    def _line(self, record: dict[str, Any]) -> bytes | None:
        try:
            return orjson.dumps(record) + b"\n"
        except TypeError as error:
            self._metrics.requests_not_logged.inc()
            self._tell(f"request {record.get('request_id')} cannot be logged ({error})")
            return None

    def _append(self, content: bytes) -> None:
        # one file in ten minutes: what is old or too much goes by whole files
        began = f"{f'{datetime.now(UTC):%Y-%m-%dT%H%M}'[:-1]}0"
        if storage.is_remote(self._place):
            name = f"{began}-{self._writer}-{uuid.uuid4().hex[:8]}.jsonl"
            storage.write_bytes(storage.join(self._place, name), content)
            return
        path = Path(self._place, f"{began}-{self._writer}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        start = os.fstat(file).st_size
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            # a full disk takes half a line, which would spoil the next one
            os.ftruncate(file, start)
            raise
        finally:
            os.close(file)

    def _tell(self, message: str) -> None:
        """Say once what is wrong, until it is over."""
        if not self._told:
            log.error(message)
            self._told = True
