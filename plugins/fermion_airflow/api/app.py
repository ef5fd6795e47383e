"""The pages that tasks link to: report, log and model. Reads only, for whoever may see Airflow's own pages.

The only module that imports FastAPI; the plugin imports it in the API server.
"""

from __future__ import annotations

from typing import Annotated

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.core_api.security import requires_access_view
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from fermion.domain.payloads import to_payload
from fermion.errors import FermionError, NotFound
from fermion.usecases.context import Context
from fermion.usecases.queries import log_of, model_version, report_page
from fermion_airflow.hooks.fermion import FermionHook

HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
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
JobId = Annotated[str, Path(pattern=r"^job-\d{8}-\d{3,9}$")]

router = APIRouter(dependencies=[Depends(requires_access_view(AccessView.WEBSITE))])


@router.get("/reports/{job_id}")
def show_report(job_id: JobId, platform: Platform) -> Response:
    """The report's page."""
    return HTMLResponse(report_page(platform, job_id), headers={**HEADERS, "Content-Security-Policy": PAGE_POLICY})


@router.get("/logs/{job_id}")
def show_log(job_id: JobId, platform: Platform, attempt: Annotated[int | None, Query(ge=1)] = None) -> Response:
    """The training's output as text, of the newest attempt unless one is named."""
    pieces = log_of(platform, job_id, attempt=attempt)
    return StreamingResponse(pieces, media_type="text/plain; charset=utf-8", headers=HEADERS)


@router.get("/models/{model:path}/{number}")
def show_model(model: str, number: Annotated[int, Path(ge=1)], platform: Platform) -> Response:
    """A model version's manifest."""
    return JSONResponse(to_payload(model_version(platform, model, number)), headers=HEADERS)


def make_app() -> FastAPI:
    """The app, to be mounted in Airflow's API server, which gives it its sign-in."""
    app = FastAPI(title="Fermion pages", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router)
    app.add_exception_handler(FermionError, _answer)
    return app


def _answer(request: Request, error: Exception) -> Response:
    """Problem details (RFC 9457)."""
    if not isinstance(error, FermionError):
        raise error
    status = STATUS_OF.get(error.code, 500)
    title = "Not found" if isinstance(error, NotFound) else "The platform could not answer"
    body = {"type": "about:blank", "title": title, "status": status, "detail": error.message, "code": error.code}
    return JSONResponse(body, status_code=status, media_type="application/problem+json", headers=HEADERS)
