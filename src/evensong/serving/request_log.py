"""Writes the sampled log of requests; `evensong.monitoring.request_log` says what a line holds, and reads it."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from datetime import UTC, datetime
from typing import Any

import orjson

from evensong.monitoring.request_log import folder, is_sampled
from evensong.serving.metrics import Metrics
from evensong.settings import Settings

log = logging.getLogger("evensong.serving")

_WAITING = 1000


class RequestLog:
    """Writes records from a thread of its own; a request never waits for the disk."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._folder = folder(settings)
        self._sample = settings.serving.request_log_sample
        self._per_second = settings.serving.request_log_per_second
        self._max_bytes = settings.serving.request_log_megabytes * 1024 * 1024
        self._metrics = metrics
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._tokens, self._filled = self._per_second, time.monotonic()
        self._lock = threading.Lock()
        self._told = False

    def start(self) -> None:
        """Begin to write."""
        if self._sample > 0:
            self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Write what waits, and end."""
        if self._thread:
            self._queue.put(None)
            self._thread.join(timeout=10)
            self._thread = None

    def wants(self, request_id: str) -> bool:
        """Whether this request is in the sample. The id decides, so a retry with the same id falls on the same side."""
        if self._thread is None or not is_sampled(request_id, self._sample):
            return False
        with self._lock:
            now = time.monotonic()
            self._tokens = min(max(self._per_second, 1.0), self._tokens + (now - self._filled) * self._per_second)
            self._filled = now
            if self._tokens < 1 or self._queue.qsize() >= _WAITING:
                self._metrics.requests_not_logged.inc()
                return False
            self._tokens -= 1
            return True

    def add(self, record: dict[str, Any]) -> None:
        """Hand over one record (the fields of `Record`)."""
        self._queue.put(record)

    def _run(self) -> None:
        while (record := self._queue.get()) is not None:
            lines = [record]
            while not self._queue.empty():
                if (more := self._queue.get()) is None:
                    self._write(lines)
                    return
                lines.append(more)
            self._write(lines)

    def _write(self, records: list[dict[str, Any]]) -> None:
        try:
            content = b"".join(orjson.dumps(record) + b"\n" for record in records)
            self._folder.mkdir(parents=True, exist_ok=True)
            # one file in ten minutes: the log's size is kept by removing whole files
            path = self._folder / f"{f'{datetime.now(UTC):%Y-%m-%dT%H%M}'[:-1]}0-{os.getpid()}.jsonl"
            is_new = not path.exists()
            with path.open("ab") as file:
                file.write(content)
            if is_new:
                path.chmod(0o600)
            self._make_room()
            self._metrics.requests_logged.inc(len(records))
            self._told = False
        except (OSError, TypeError) as error:
            self._metrics.requests_not_logged.inc(len(records))
            if not self._told:
                log.error(
                    "the request log cannot be written (%s); free the disk or correct the rights of %s",
                    error,
                    self._folder,
                )
                self._told = True

    def _make_room(self) -> None:
        files = sorted(self._folder.glob("*.jsonl"))
        sizes = [path.stat().st_size for path in files]
        excess = sum(sizes) - self._max_bytes
        # the newest file is being written
        for path, size in zip(files[:-1], sizes[:-1], strict=True):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
