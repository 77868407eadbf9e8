"""What happens around every request: its id, its log line, its metrics, the headers, the bounds, the last resort."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evensong.serving import problems
from evensong.serving.metrics import Metrics

log = logging.getLogger("evensong.serving.requests")

#: A caller's own request id is kept when it looks like one; anything else could forge log lines or headers.
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MAX_BODY_BYTES = 512 * 1024

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Around:
    """ASGI middleware around the whole app; pure ASGI, since it runs for every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        notes: dict[str, Any] = {"request_id": _request_id(headers)}
        asked = scope["method"]
        # every address that answers GET answers HEAD; the server, which keeps the scope as it came, leaves the body out
        scope = {**scope, "evensong": notes, "method": "GET" if asked == "HEAD" else asked}
        status = 0
        start = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = notes["request_id"]
                for name, value in SECURITY_HEADERS.items():
                    out[name] = value
                out["server-timing"] = f"total;dur={(time.perf_counter() - start) * 1000:.1f}"
                out.setdefault("cache-control", "no-store")
            await send(message)

        try:
            await self.app(scope, _bounded(headers, receive), send_with_headers)
        except Exception:
            log.exception("request %s failed", notes["request_id"])
            # once the answer has begun nothing but closing the connection is left: the server does on an exception
            if status:
                raise
            await _answer(send_with_headers, problems.internal(), notes["request_id"])
        finally:
            self._tell(scope, asked, notes, status, time.perf_counter() - start)

    def _tell(self, scope: Scope, method: str, notes: dict[str, Any], status: int, seconds: float) -> None:
        # the route's template, not the path: paths carry ids and would make a series each
        route = getattr(scope.get("route"), "path_format", "unknown")
        self.metrics.requests.labels(route, method if route != "unknown" else "any", str(status)).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        if log.isEnabledFor(logging.INFO):
            line = {"route": route, "method": method, "status": status, "ms": round(seconds * 1000, 2)} | notes
            log.info("%(method)s %(route)s %(status)s", line, extra={"fields": line})


def _request_id(headers: Headers) -> str:
    asked = headers.get("x-request-id", "")
    return asked if SANE_REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex


def _bounded(headers: Headers, receive: Receive) -> Receive:
    """Refuse a body past the bound, stated or not."""
    stated = headers.get("content-length", "")
    if stated.isdigit() and int(stated) > MAX_BODY_BYTES:
        return _refuse(int(stated))
    came = 0

    async def receive_bounded() -> Message:
        nonlocal came
        message = await receive()
        came += len(message.get("body", b""))
        if came > MAX_BODY_BYTES:
            raise _too_large(came)
        return message

    return receive_bounded


def _refuse(size: int) -> Receive:
    async def receive() -> Message:
        raise _too_large(size)

    return receive


def _too_large(size: int) -> HTTPException:
    # FastAPI lets an HTTPException through where it reads bodies, and turns anything else into a 400
    return HTTPException(
        413, f"expected a body of at most {MAX_BODY_BYTES} bytes, came {size}", {"connection": "close"}
    )


async def _answer(send: Send, problem: problems.ProblemError, request_id: str) -> None:
    body = problems.body(problem, request_id)
    headers = [(b"content-type", problems.JSON.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
