"""How problems are answered over HTTP."""

from __future__ import annotations

from starlette.responses import JSONResponse

HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


def problem_response(status: int, title: str, detail: str, code: str, **more: object) -> JSONResponse:
    """Problem details (RFC 9457)."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code, **more}
    return JSONResponse(body, status_code=status, media_type="application/problem+json", headers=HEADERS)
