"""Runs the service: uvicorn, its processes, its log, its end."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import uvicorn
from uvicorn.supervisors import Multiprocess

from evensong.errors import LaunchError
from evensong.serving.metrics import FOLDER_PREFIX, MULTIPROCESS_VARIABLE
from evensong.settings import Settings, reachable

#: Requests in flight get so long to end when the service is told to stop.
GRACE_SECONDS = 20

OnAnswer = Callable[[dict[str, Any]], None]


def run(settings: Settings, on_answer: OnAnswer | None = None) -> None:
    """Serve until told to stop (SIGTERM or Ctrl-C); requests in flight are answered first.

    `on_answer` is called once, with `address` and `pid`, when the service begins to answer.

    Raises:
        LaunchError: it cannot listen where the settings say.
    """
    log_as_json()
    # A request is small: several threads for one cost more than they save, and requests run beside each other anyway.
    for variable in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(variable, "1")
    listening = listen(settings)
    if on_answer:
        threading.Thread(target=_tell, args=(settings, on_answer), name="tell", daemon=True).start()
    if settings.serving.workers == 1:
        server = uvicorn.Server(config(settings))
        # being told to stop is no failure: uvicorn ends in good order, then sends itself the signal again
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        server.run(sockets=[listening])
        return
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
        # the workers are spawned from here and inherit it
        os.environ[MULTIPROCESS_VARIABLE] = folder
        Multiprocess(config(settings), sockets=[listening]).run()


def listen(settings: Settings) -> socket.socket:
    """The socket that every process of the service takes requests from.

    Raises:
        LaunchError: the port is taken or reserved, or the host is none of this machine's.
    """
    host, port = settings.serving.host, settings.serving.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named as TCP, or asyncio would hold small answers back to join them (Nagle)
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # connections of a service before this one that are closing do not keep it from starting again
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        # of two that start at once, the second is refused here and not when it answers
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise LaunchError(
            f"expected to listen on port {port} of {host}: {error.strerror or error}; end what listens there "
            "(`ss -ltnp` names it), or set EVENSONG_SERVING__PORT and EVENSONG_SERVING__HOST"
        ) from error
    listening.set_inheritable(True)
    return listening


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


def _tell(settings: Settings, on_answer: OnAnswer) -> None:
    import httpx

    address = f"http://{reachable(settings.serving.host)}:{settings.serving.port}"
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/healthz", timeout=2, trust_env=False).status_code == 200:
                break
        time.sleep(0.1)
    on_answer({"address": address, "pid": os.getpid()})


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
