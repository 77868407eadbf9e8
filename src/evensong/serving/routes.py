"""The addresses of the service: each reads its request, calls one function, and writes the answer."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import resources
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request
from fastapi.responses import Response

from evensong.serving import metrics as metrics_module
from evensong.serving import problems, schemas
from evensong.serving import recommend as recommending
from evensong.serving.champion import Champion, InUse
from evensong.serving.metrics import Metrics
from evensong.serving.people import unix_time
from evensong.serving.problems import ProblemError
from evensong.serving.request_log import RequestLog
from evensong.settings import Settings

T = TypeVar("T")

PAGE_FILES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


@dataclasses.dataclass
class Service:
    """What the routes share; made by the app, started and ended by its lifespan."""

    settings: Settings
    metrics: Metrics
    champion: Champion
    reader: recommending.UserReader
    request_log: RequestLog
    pool: ThreadPoolExecutor
    num_waiting: int = 0

    async def work(self, function: Callable[[], T]) -> T:
        """Run in a thread of the pool; past the bound of waiting requests, refuse at once instead of answering late."""
        serving = self.settings.serving
        if self.num_waiting >= serving.max_waiting + serving.threads:
            raise ProblemError(
                503,
                "overloaded",
                f"expected at most {serving.max_waiting} waiting requests, came one more",
                "try again in a second; if this lasts, raise serving.workers",
            )
        self.num_waiting += 1
        asked = time.perf_counter()

        def timed() -> T:
            self.metrics.stage_seconds.labels("waiting").observe(time.perf_counter() - asked)
            return function()

        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, timed)
        finally:
            self.num_waiting -= 1

    def model(self) -> InUse:
        """The model in use, or the 503 that says why there is none."""
        if (in_use := self.champion.in_use) is None:
            raise _not_ready(self.champion)
        return in_use


def router(service: Service) -> APIRouter:
    """Every address."""
    api = APIRouter(responses={422: _problem("The request does not fit."), 500: _problem("A defect of ours.")})
    settings = service.settings
    not_ready: dict[int | str, dict[str, Any]] = {
        503: _problem("No model is loaded yet, or too many requests wait; the answer says which.")
    }

    async def answer(request: Request, ask: recommending.Ask) -> Response:
        in_use = service.model()

        def work() -> bytes:
            reply = recommending.recommend(
                ask,
                in_use,
                service.champion.features,
                service.reader,
                service.metrics,
                filter_rule=settings.serving.filter,
                now=datetime.now(UTC),
            )
            service.request_log.take(ask.request_id, lambda: recommending.record(ask, reply, in_use))
            notes = request.scope["evensong"]
            notes |= {name: reply.answer[name] for name in ("user_id", "source", "reason", "model_version")}
            return orjson.dumps(reply.answer)

        return _json(await service.work(work))

    @api.get("/recommend", response_model=schemas.Recommendations, responses=not_ready, tags=["recommend"])
    async def get_recommend(request: Request, query: Annotated[schemas.RecommendQuery, Query()]) -> Response:
        """Items for one user.

        A user that nobody knows, or whose features cannot be read, gets popular items; `source` and `reason` say so.
        """
        ask = recommending.Ask(_request_id(request), query.user_id, _checked_k(query.k, "query.k", settings))
        return await answer(request, ask)

    @api.post(
        "/recommend",
        response_model=schemas.Recommendations,
        responses=not_ready
        | {
            413: _problem("The body is too large."),
            415: _problem("The body is not said to be JSON."),
        },
        dependencies=[Depends(_said_to_be_json)],
        tags=["recommend"],
    )
    async def post_recommend(request: Request, body: schemas.RecommendBody) -> Response:
        """Items for one user, with what the caller knows about this moment and items to leave out."""
        ask = recommending.Ask(
            _request_id(request),
            body.user_id,
            _checked_k(body.k, "body.k", settings),
            exclude_item_ids=body.exclude_item_ids,
            recent_item_ids=body.context.recent_item_ids,
            session_id=body.context.session_id,
            surface=body.context.surface,
        )
        return await answer(request, ask)

    @api.get("/healthz", response_model=schemas.Health, tags=["operate"])
    async def healthz() -> Response:
        """Whether the process lives. It may not be ready yet: see /readyz."""
        return _json(b'{"status":"ok"}')

    @api.get("/readyz", response_model=schemas.Ready, responses=not_ready, tags=["operate"])
    async def readyz() -> Response:
        """Whether a model is loaded; which one; and what is wrong although the service answers."""
        in_use = service.model()
        model = {
            "name": in_use.name,
            "version": in_use.version,
            "as_of": in_use.as_of,
            "loaded_at": in_use.loaded_at.isoformat(timespec="seconds"),
            "num_items": len(in_use.positions),
        }
        ready = {
            "status": "ready",
            "model": model,
            "features_as_of": in_use.materialized.as_of.isoformat() if in_use.materialized else None,
            "warnings": service.champion.warnings,
        }
        return _json(orjson.dumps(ready))

    @api.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"example": 'evensong_requests_total{route="/recommend"} 3.0'}}}},
        tags=["operate"],
    )
    async def metrics() -> Response:
        """Everything counted and timed, for Prometheus."""
        return Response(service.metrics.render(), media_type=metrics_module.CONTENT_TYPE)

    if settings.serving.page:
        api.include_router(_for_people(service, not_ready))
    return api


def _for_people(service: Service, not_ready: dict[int | str, dict[str, Any]]) -> APIRouter:
    api = APIRouter(tags=["people"])

    @api.get("/users", response_model=schemas.People)
    async def users(query: Annotated[schemas.PeopleQuery, Query()]) -> Response:
        """Users to choose from, the most recently active first."""
        found = await service.work(lambda: service.champion.people.find(query.starts_with, query.limit))
        return _json(orjson.dumps({"users": found}))

    @api.get(
        "/users/{user_id:path}/history",
        response_model=schemas.History,
        responses=not_ready | {404: _problem("No such address.")},
    )
    async def history(request: Request, user_id: Annotated[schemas.Id, Path()]) -> Response:
        """What the online store knows of a user: newest events first, with titles."""
        in_use = service.model()
        request.scope["evensong"]["user_id"] = user_id
        return _json(orjson.dumps(await service.work(lambda: _history(service, in_use, user_id))))

    for name, media_type in PAGE_FILES.items():
        address = "/" if name == "index.html" else f"/page/{name}"
        api.add_api_route(address, _page_file(name, media_type), methods=["GET"], include_in_schema=False)
    return api


def _page_file(name: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    content = (resources.files("evensong.serving") / "page" / name).read_bytes()

    async def answer() -> Response:
        return Response(content, media_type=f"{media_type}; charset=utf-8")

    return answer


def _history(service: Service, in_use: InUse, user_id: str) -> dict[str, Any]:
    users, _ = service.reader.read(service.champion.features, user_id)
    if users is None:
        raise ProblemError(
            503,
            "features_unavailable",
            "expected the user's features from the online store, which cannot be read",
            "start the online store, or run `evensong nightly`; /recommend answers with popular items meanwhile",
        )
    row = users.row(0, named=True)
    items, types = row["recent_item_ids"] or [], row["recent_event_types"] or []
    events = []
    for position in range(len(items) - 1, -1, -1):
        title, category = in_use.titles.get(items[position], (None, None))
        event_type = types[position] if position < len(types) else None
        events.append({"item_id": items[position], "title": title, "category": category, "event_type": event_type})
    return {
        "user_id": user_id,
        "known": row["num_interactions"] is not None,
        "num_interactions": row["num_interactions"] or 0,
        "last_interaction": unix_time(row["last_interaction_seconds"]),
        "top_categories": row["top_categories"] or [],
        "events": events,
    }


def _not_ready(champion: Champion) -> ProblemError:
    warnings = champion.warnings
    return ProblemError(
        503,
        "not_ready",
        "expected a loaded model, there is none yet"
        + (f": {'; '.join(warnings)}" if warnings else ": it is being loaded"),
        "do what the message names; /readyz tells when it is done" if warnings else "try again in a few seconds",
    )


def _said_to_be_json(request: Request) -> None:
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, f"expected Content-Type: application/json, came {problems.echo(kind)}")


def _checked_k(k: int | None, field: str, settings: Settings) -> int:
    serving = settings.serving
    if k is None:
        return min(serving.default_k, serving.max_k)
    if not 1 <= k <= serving.max_k:
        raise problems.invalid(
            [schemas.Detail(field=field, expected=f"a number from 1 to {serving.max_k}", came=problems.echo(k))]
        )
    return k


def _request_id(request: Request) -> str:
    request_id: str = request.scope["evensong"]["request_id"]
    return request_id


def _json(body: bytes) -> Response:
    return Response(body, media_type=problems.JSON)


def _problem(description: str) -> dict[str, Any]:
    return {"model": schemas.Problem, "description": description}
