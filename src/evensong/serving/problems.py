"""How errors are told to callers: one form, what was expected, what came, what to do, and never a stack trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from evensong.serving import schemas

CORRECT_IT = "correct what is named and send the request again; /openapi.json describes it"
#: Longest echo of what a caller sent.
MAX_ECHO = 120

JSON = "application/json"

#: Status to code, message (none: the exception's own) and what to do.
_KNOWN_STATUS: dict[int, tuple[str, str | None, str]] = {
    404: ("not_found", "no such address", "GET /openapi.json lists every address"),
    405: ("method_not_allowed", "this address does not answer this method", "GET /openapi.json lists what it answers"),
    413: ("body_too_large", None, "send fewer or shorter ids"),
    415: ("unsupported_media_type", None, "send one JSON object with the header Content-Type: application/json"),
    400: ("unreadable_body", "the body cannot be read", "send one JSON object, encoded as UTF-8"),
}


class ProblemError(Exception):
    """Ends a request with the given status."""

    def __init__(
        self, status: int, code: str, message: str, what_to_do: str, details: Sequence[schemas.Detail] = ()
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.what_to_do = status, code, message, what_to_do
        self.details = list(details)


def body(problem: ProblemError, request_id: str) -> bytes:
    """The JSON of a problem."""
    return orjson.dumps(
        {
            "error": {
                "code": problem.code,
                "message": problem.message,
                "what_to_do": problem.what_to_do,
                "request_id": request_id,
                "details": [detail.model_dump() for detail in problem.details],
            }
        }
    )


def invalid(details: Sequence[schemas.Detail]) -> ProblemError:
    """The problem of a request that does not fit its schema."""
    message = "; ".join(f"{detail.field}: expected {detail.expected}, came {detail.came}" for detail in details)
    return ProblemError(422, "invalid_request", message, CORRECT_IT, details)


def internal() -> ProblemError:
    """The problem of a defect of ours."""
    return ProblemError(
        500,
        "internal_error",
        "the service failed on this request",
        "try again; if it fails again, tell the operator the request_id: the log has the cause",
    )


def echo(value: object) -> str:
    """What came, short enough to send back."""
    text = repr(value)
    return text if len(text) <= MAX_ECHO else text[: MAX_ECHO - 1] + "…"


def install(app: FastAPI) -> None:
    """Make every error of the app take the one form."""

    @app.exception_handler(ProblemError)
    async def _problem(request: Request, error: ProblemError) -> Response:
        return _response(request, error)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        return _response(request, invalid([_detail(entry) for entry in error.errors()]))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        code, message, what_to_do = _KNOWN_STATUS.get(
            error.status_code, ("refused", None, "GET /openapi.json describes every address")
        )
        text = f"{request.method} {echo(request.url.path)}: {message or error.detail}"
        problem = ProblemError(error.status_code, code, text, what_to_do)
        return _response(request, problem, dict(error.headers or {}))


def _response(request: Request, problem: ProblemError, headers: dict[str, str] | None = None) -> Response:
    request_id = request.scope["evensong"]["request_id"]
    return Response(body(problem, request_id), problem.status, headers=headers, media_type=JSON)


def _detail(error: dict[str, Any]) -> schemas.Detail:
    field = ".".join(str(part) for part in error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    came = echo(error.get("input"))
    match kind:
        case "missing":
            return schemas.Detail(field=field, expected="a value", came="none")
        case "extra_forbidden":
            return schemas.Detail(field=field, expected="no such field", came=came)
        case "json_invalid":
            reason = context.get("error", "no reason given")
            return schemas.Detail(field="body", expected="a JSON object", came=f"text that is no JSON ({reason})")
        case "string_pattern_mismatch":
            return schemas.Detail(field=field, expected="text without control characters", came=came)
        case "greater_than_equal":
            return schemas.Detail(field=field, expected=f"{context['ge']} or more", came=came)
        case "less_than_equal":
            return schemas.Detail(field=field, expected=f"{context['le']} or less", came=came)
    expected = str(error["msg"]).removeprefix("Input should be ")
    return schemas.Detail(field=field, expected=expected[:1].lower() + expected[1:], came=came)
