"""The app behind the page *Promotions* and the links of tasks: what it shows, and the three moves, each under Airflow's
own permissions.

Who may read the DAG `nightly_retraining` may look. Who may answer its requests for input may approve and reject; who
may trigger `rollback_champion` may roll back. Endpoints are plain functions: they run in threads, off the event loop.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models.dagrun import DagRun
from evensong_airflow import person
from fastapi import Depends, FastAPI, HTTPException, Request, Response, status
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from starlette.exceptions import HTTPException as StarletteHTTPException

from evensong.errors import (
    BundleError,
    EvensongError,
    PromotionRefusedError,
    RegistryError,
    StorageError,
    UnknownVersionError,
    UnusableReasonError,
)
from evensong.pipelines.overview import Overview
from evensong.settings import Settings, load_settings

NIGHTLY, ROLLBACK = "nightly_retraining", "rollback_champion"
PAGE = Path(__file__).parent / "page"
MAX_RUNS = 20

#: The page is its own files and nothing else; Airflow may show it in a frame.
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
#: A dossier, and a page of GX, is shown, never run; it may fetch nothing.
DOSSIER_POLICY = "sandbox allow-popups; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Body(BaseModel):
    """What a request carries; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class ReviewBody(Body):
    """An answer to a review."""

    outcome: Literal["approved", "rejected"]
    comment: str = Field(min_length=1, max_length=1000)


class RollbackBody(Body):
    """A wish to return to the champion before."""

    expected: str = Field(pattern="^[0-9]+$")
    """The champion that the person saw."""
    reason: str = Field(min_length=3, max_length=1000)


class Run(BaseModel):
    """A run of the nightly DAG."""

    run_id: str
    state: str
    at: datetime
    as_of: str | None


class Shown(BaseModel):
    """Everything that the page shows to this person."""

    overview: Overview
    runs: list[Run]
    """The newest runs of the nightly DAG, newest first."""
    user: str
    may_review: bool
    may_roll_back: bool


def may_review(user: BaseUser) -> bool:
    """Whether Airflow would let this person answer a request for input of the nightly DAG."""
    return _may(user, "PUT", DagAccessEntity.HITL_DETAIL, NIGHTLY)


def may_roll_back(user: BaseUser) -> bool:
    """Whether Airflow would let this person trigger the rollback's DAG."""
    return _may(user, "POST", DagAccessEntity.RUN, ROLLBACK)


def from_this_page(request: Request) -> None:
    """Refuse what another site's page could make a browser send with this person's cookie.

    Raises:
        HTTPException: not JSON, which a foreign page cannot send unasked; or the browser says that one sent it.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(status.HTTP_415_UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/json")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "expected a request of this page, came one of another site")


looks = Depends(requires_access_dag("GET", param_dag_id=NIGHTLY))
reviews = Depends(requires_access_dag("PUT", DagAccessEntity.HITL_DETAIL, param_dag_id=NIGHTLY))
rolls_back = Depends(requires_access_dag("POST", DagAccessEntity.RUN, param_dag_id=ROLLBACK))


def settings_now() -> Settings:
    """The settings of this process."""
    return load_settings()


SettingsDep = Annotated[Settings, Depends(settings_now)]


def create_app() -> FastAPI:
    """The app; mounted by Airflow below its own."""
    app = FastAPI(title="Evensong promotions", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(EvensongError, _refused)
    app.add_exception_handler(StarletteHTTPException, _turned_away)
    app.get("/")(page)
    app.get("/api/overview", dependencies=[looks])(shown)
    app.get("/dossier/{version}", dependencies=[looks])(dossier)
    app.get("/data-docs/{run_id}/{name:path}", dependencies=[looks])(data_docs)
    app.post("/api/reviews/{version}", dependencies=[Depends(from_this_page), reviews])(answer_review)
    app.post("/api/rollback", dependencies=[Depends(from_this_page), rolls_back])(roll_back)
    app.mount("/", StaticFiles(directory=PAGE))
    return app


def page() -> Response:
    """The page itself; it holds no data."""
    return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})


def shown(settings: SettingsDep, user: GetUserDep, session: SessionDep) -> Shown:
    """What the page shows."""
    from evensong.pipelines.overview import overview

    return Shown(
        overview=overview(settings),
        runs=_runs(session),
        user=user.get_name(),
        may_review=may_review(user),
        may_roll_back=may_roll_back(user),
    )


def dossier(version: str, settings: SettingsDep) -> Response:
    """A version's dossier, as it lies on the version."""
    from evensong.pipelines.overview import dossier_of

    try:
        content = dossier_of(settings, version)
    except RegistryError as error:
        raise HTTPException(status.HTTP_404_NOT_FOUND, str(error)) from error
    except BundleError as error:
        raise HTTPException(status.HTTP_409_CONFLICT, str(error)) from error
    return _shown_only(content)


def data_docs(run_id: str, name: str, settings: SettingsDep) -> Response:
    """A page of a night's Data Docs."""
    from evensong.pipelines import docs_pages

    try:
        content = docs_pages.read(settings, run_id, name)
    except StorageError as error:
        raise HTTPException(status.HTTP_404_NOT_FOUND, str(error)) from error
    return _shown_only(content)


def answer_review(version: str, body: ReviewBody, settings: SettingsDep, user: GetUserDep) -> dict[str, Any]:
    """Approve or reject a version that waits for a person."""
    from evensong.registry import review

    given = review.answer(settings, version, body.outcome, by=person(user.get_name()), via="page", comment=body.comment)
    value: dict[str, Any] = given.model_dump(mode="json")
    return value


def roll_back(body: RollbackBody, settings: SettingsDep, user: GetUserDep) -> dict[str, Any]:
    """Return to the champion before; sent twice, it is made once."""
    from evensong.registry import commands

    return commands.rollback(settings, reason=body.reason, actor=person(user.get_name()), expected=body.expected)


def _shown_only(content: bytes | str) -> Response:
    headers = {"Content-Security-Policy": DOSSIER_POLICY, "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


def _may(user: BaseUser, method: Any, entity: DagAccessEntity, dag_id: str) -> bool:
    manager = get_auth_manager()
    return bool(
        manager.is_authorized_dag(method=method, access_entity=entity, details=DagDetails(id=dag_id), user=user)
    )


def _runs(session: Any) -> list[Run]:
    newest = select(DagRun).where(DagRun.dag_id == NIGHTLY).order_by(DagRun.run_after.desc()).limit(MAX_RUNS)
    return [
        Run(
            run_id=run.run_id,
            state=str(run.state),
            at=run.start_date or run.run_after,
            as_of=(run.conf or {}).get("as_of"),
        )
        for run in session.scalars(newest)
    ]


def _refused(_: Request, error: Exception) -> Response:
    """An error raised on purpose, in its own words."""
    codes = {
        PromotionRefusedError: status.HTTP_409_CONFLICT,
        UnknownVersionError: status.HTTP_404_NOT_FOUND,
        UnusableReasonError: 422,
    }
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), status.HTTP_503_SERVICE_UNAVAILABLE)
    return JSONResponse({"detail": str(error)}, code)


def _turned_away(request: Request, error: Exception) -> Response:
    """Who opens a link without being logged in logs in first and comes back."""
    assert isinstance(error, StarletteHTTPException)
    if error.status_code == status.HTTP_401_UNAUTHORIZED and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(get_auth_manager().get_url_login(next_url=str(request.url)))
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)
