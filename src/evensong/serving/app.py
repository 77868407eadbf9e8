"""The application: what it is made of, and what begins and ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

import evensong
from evensong.serving import problems, routes, schemas
from evensong.serving.around import Around
from evensong.serving.champion import Champion
from evensong.serving.metrics import Metrics
from evensong.serving.recommend import UserReader
from evensong.serving.request_log import RequestLog
from evensong.settings import Settings, load_settings

#: A process beside others begins to answer once it has a model, or after so long.
FIRST_LOOK_SECONDS = 60

DESCRIPTION = """Recommendations from the current champion.

Every answer carries the model version and a request id, also as the header `X-Request-ID`; send your own to follow a
request through the logs. Every error has one form: `error.code`, `error.message` (what was expected and what came),
`error.what_to_do`, `error.request_id`."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service. Without settings it reads them; the model is loaded in the background once the app has started."""
    settings = settings or load_settings()
    metrics = Metrics()
    service = routes.Service(
        settings=settings,
        metrics=metrics,
        champion=Champion(settings, metrics),
        reader=UserReader(settings, metrics),
        request_log=RequestLog(settings, metrics),
        pool=ThreadPoolExecutor(settings.serving.threads, thread_name_prefix="recommend"),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.request_log.start()
        service.champion.start()
        if settings.serving.workers > 1:
            # one port, several processes: one that cannot answer yet must not take requests from those that can
            await asyncio.to_thread(service.champion.looked.wait, FIRST_LOOK_SECONDS)
        try:
            yield
        finally:
            service.champion.stop()
            service.pool.shutdown(wait=True)
            service.request_log.stop()

    app = FastAPI(
        title="Evensong",
        version=evensong.__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        # both load their scripts from elsewhere; /openapi.json is the reference, / the page for people
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(routes.router(service))
    problems.install(app)
    app.add_middleware(Around, metrics=metrics)
    _complete_openapi(app, settings)
    return app


def _complete_openapi(app: FastAPI, settings: Settings) -> None:
    """Write the settings' bounds of k into the OpenAPI document, and the examples as they are: FastAPI drops nulls."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = original()
            serving = settings.serving
            for parameter in document["paths"]["/recommend"]["get"]["parameters"]:
                if parameter["name"] == "k":
                    _bound(parameter["schema"], serving.default_k, serving.max_k)
            _bound(
                document["components"]["schemas"]["RecommendBody"]["properties"]["k"], serving.default_k, serving.max_k
            )
            for name, shape in document["components"]["schemas"].items():
                extra = getattr(getattr(schemas, name, None), "model_config", {}).get("json_schema_extra", {})
                shape |= {"examples": extra["examples"]} if "examples" in extra else {}
        return app.openapi_schema or document

    app.openapi = openapi  # type: ignore[method-assign]


def _bound(schema: dict[str, Any], default: int, maximum: int) -> None:
    schema["default"] = default
    for option in schema.get("anyOf", [schema]):
        if option.get("type") == "integer":
            option |= {"minimum": 1, "maximum": maximum}
