"""Runs the service: uvicorn, its processes, its log, its end."""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
from datetime import UTC, datetime

import orjson
import uvicorn
from uvicorn.supervisors import Multiprocess

from evensong.serving.metrics import FOLDER_PREFIX, MULTIPROCESS_VARIABLE
from evensong.settings import Settings

#: Requests in flight get so long to end when the service is told to stop.
GRACE_SECONDS = 20


def run(settings: Settings) -> None:
    """Serve until told to stop (SIGTERM or Ctrl-C); requests in flight are answered first."""
    log_as_json()
    # A request is small: several threads for one cost more than they save, and requests run beside each other anyway.
    for variable in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(variable, "1")
    if settings.serving.workers == 1:
        uvicorn.Server(config(settings)).run()
        return
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
        # the workers are spawned from here and inherit it
        os.environ[MULTIPROCESS_VARIABLE] = folder
        several = config(settings)
        socket = several.bind_socket()
        Multiprocess(several, sockets=[socket]).run()


def config(settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the service."""
    return uvicorn.Config(
        functools.partial(worker_app, settings),
        factory=True,
        host=settings.serving.host,
        port=settings.serving.port,
        workers=settings.serving.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_worker_healthcheck=60,
        limit_concurrency=None,
    )


def worker_app(settings: Settings) -> object:
    """The app as one process of the service has it."""
    from evensong.serving.app import create_app

    log_as_json()
    return create_app(settings)


def log_as_json() -> None:
    """One line of JSON a log record, on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("evensong").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.INFO)


class JsonLines(logging.Formatter):
    """A record as one JSON object; a message that is JSON already becomes part of it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        if fields:
            line |= fields
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()
