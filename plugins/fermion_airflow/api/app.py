"""The pages that tasks link to: report, log and model. Reads only, for whoever may see Airflow's own pages.

The only module that imports FastAPI; the plugin imports it in the API server.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlencode

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.core_api.security import requires_access_view
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Query, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

from fermion.domain.payloads import to_payload
from fermion.errors import FermionError, NotFound
from fermion.usecases.context import Context
from fermion.usecases.logs import log_of
from fermion.usecases.queries import model_version, report_page
from fermion_airflow.api.answers import HEADERS, problem_response
from fermion_airflow.api.model_page import page_of
from fermion_airflow.hooks.fermion import FermionHook

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'self'; sandbox allow-popups allow-downloads"
)
"""A report holds words that training code wrote: it may style itself and do nothing else, whatever stands in it."""

STATUS_OF = {"not_found": 404, "outside_unavailable": 503, "outside_broken": 502}


def open_platform() -> Context:
    """The platform; tests put another in its place."""
    return FermionHook().platform()


Platform = Annotated[Context, Depends(open_platform)]
JobId = Annotated[str, Path(pattern=r"^job-[0-9]{8}-[0-9]{3,9}$")]

router = APIRouter(dependencies=[Depends(requires_access_view(AccessView.WEBSITE))])


@router.get("/reports/{job_id}")
def show_report(job_id: JobId, platform: Platform) -> Response:
    """The report's page."""
    return HTMLResponse(report_page(platform, job_id), headers={**HEADERS, "Content-Security-Policy": PAGE_POLICY})


@router.get("/logs/{job_id}")
def show_log(job_id: JobId, platform: Platform, attempt: Annotated[int | None, Query(ge=1)] = None) -> Response:
    """The training's output as text, of the newest attempt unless one is named."""
    pieces = (piece.text for piece in log_of(platform, job_id, attempt=attempt))
    return StreamingResponse(pieces, media_type="text/plain; charset=utf-8", headers=HEADERS)


@router.get("/models/{model:path}/{number}")
def show_model(request: Request, model: str, number: Annotated[int, Path(ge=1)], platform: Platform) -> Response:
    """A model version's manifest; a page for a browser, which says that it takes HTML."""
    version = model_version(platform, model, number)
    headers = {**HEADERS, "Vary": "Accept"}
    if not _is_browser(request):
        return JSONResponse(to_payload(version), headers=headers)
    page = page_of(version, prefix=str(request.scope.get("root_path", "")))
    return HTMLResponse(page, headers={**headers, "Content-Security-Policy": PAGE_POLICY})


def make_app() -> FastAPI:
    """The app, to be mounted in Airflow's API server, which gives it its sign-in."""
    app = FastAPI(title="Fermion pages", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router)
    app.add_exception_handler(HTTPException, _answer_refused)
    app.add_exception_handler(FermionError, _answer)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    return app


def _is_browser(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


async def _answer_refused(request: Request, error: Exception) -> Response:
    """A person who is not signed in, or not any more, comes to Airflow's sign-in, and from there back to the page."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code != HTTPStatus.UNAUTHORIZED or not _is_browser(request):
        return await http_exception_handler(request, error)
    back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"{get_auth_manager().get_url_login()}?{urlencode({'next': back})}", 302, headers=HEADERS)


def _answer(request: Request, error: Exception) -> Response:
    if not isinstance(error, FermionError):
        raise error
    title = "Not found" if isinstance(error, NotFound) else "The platform could not answer"
    return problem_response(STATUS_OF.get(error.code, 500), title, error.message, error.code)


def _answer_invalid(request: Request, error: Exception) -> Response:
    """An address that no page can have is not found; what was sent is not repeated."""
    if not isinstance(error, RequestValidationError):
        raise error
    wrong = [(str(each["loc"][0]), str(each["loc"][-1]), each["msg"]) for each in error.errors()]
    if any(place == "path" for place, _, _ in wrong):
        return problem_response(
            404,
            "Not found",
            "There is no such page: a job's id is as job-20241110-001, a version a number.",
            "not_found",
        )
    return problem_response(
        422, "Not understood", "; ".join(f"{name}: {told}" for _, name, told in wrong), "request_refused"
    )
