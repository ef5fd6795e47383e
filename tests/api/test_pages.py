"""The pages that tasks link to: only for who is signed in, and nothing but what they are for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from airflow import settings
from airflow.api_fastapi.app import create_auth_manager, purge_cached_app
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models.revoked_token import RevokedToken
from fastapi.testclient import TestClient

from builders import NOW
from fermion.domain.artifacts import FileEntry, ModelVersion
from fermion.domain.workloads import workload_name
from fermion.usecases.report import write_report
from fermion_airflow.api.app import make_app, open_platform
from fermion_airflow.api.model_page import page_of
from platforms import Platform

SECRET = "a-secret-of-the-tests-that-is-long-enough-for-the-signature-algorithm"
PAGES = ["/reports/{job}", "/logs/{job}", "/models/digits/1"]


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(tmp_path)


@pytest.fixture
def job(platform: Platform) -> str:
    started = platform.start(platform.submit())
    platform.driver.workloads.print(workload_name(started.id, 1), "<script>alert(1)</script>\n")
    ended = platform.finish(started)
    write_report(platform.ctx, ended.id)
    return ended.id


@pytest.fixture
def client(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The app as the API server mounts it, with Airflow's own sign-in."""
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", SECRET)
    monkeypatch.setenv(
        "AIRFLOW__CORE__AUTH_MANAGER",
        "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
    )
    purge_cached_app()
    create_auth_manager()
    # The only table of Airflow's that a sign-in asks: whether the token was revoked.
    RevokedToken.metadata.tables["revoked_token"].create(settings.engine, checkfirst=True)
    app = make_app()
    app.dependency_overrides[open_platform] = lambda: platform.ctx
    with TestClient(app) as opened:
        yield opened
    purge_cached_app()


def token(role: str = "VIEWER", *, valid_for: timedelta = timedelta(minutes=5)) -> str:
    user = SimpleAuthManagerUser(username="ann", role=role)
    manager = create_auth_manager()
    return manager.generate_jwt(user, expiration_time_in_seconds=int(valid_for.total_seconds()))


def signed_in(role: str = "VIEWER") -> dict[str, str]:
    return {"Authorization": f"Bearer {token(role)}"}


@pytest.mark.parametrize("page", PAGES)
def test_a_viewer_sees_the_page_by_header_and_by_cookie(client: TestClient, job: str, page: str) -> None:
    assert client.get(page.format(job=job), headers=signed_in()).status_code == 200
    assert client.get(page.format(job=job), cookies={"_token": token()}).status_code == 200


@pytest.mark.parametrize("page", PAGES)
def test_a_browser_without_a_token_comes_to_the_sign_in_and_back(client: TestClient, job: str, page: str) -> None:
    path = f"{page.format(job=job)}?attempt=1"
    answer = client.get(path, headers={"Accept": "text/html"}, follow_redirects=False)
    place = urlsplit(answer.headers["location"])
    assert (answer.status_code, place.path, parse_qs(place.query)) == (302, "/auth/login", {"next": [path]})


@pytest.mark.parametrize("page", PAGES)
def test_nobody_sees_a_page_without_a_token(client: TestClient, job: str, page: str) -> None:
    assert client.get(page.format(job=job)).status_code == 401


@pytest.mark.parametrize("page", PAGES)
def test_a_forged_a_foreign_and_an_expired_token_open_nothing(client: TestClient, job: str, page: str) -> None:
    genuine = token()
    claims = jwt.decode(genuine, options={"verify_signature": False})
    forged = jwt.encode({**claims, "role": "ADMIN"}, "another-secret-that-is-long-enough-" * 3, algorithm="HS512")
    unsigned = jwt.encode(claims, None, algorithm="none")
    expired = token(valid_for=timedelta(seconds=-3600))
    for bad in (forged, unsigned, genuine[:-3], expired, "", "null"):
        answer = client.get(page.format(job=job), headers={"Authorization": f"Bearer {bad}"})
        assert answer.status_code in {401, 403}, bad


@pytest.mark.parametrize(
    "path",
    [
        "/reports/..%2F..%2Fetc%2Fpasswd",
        "/reports/../secrets/passwords.json",
        "/reports/job-20260302-001.json",
        "/reports/%2e%2e",
        "/logs/..%2F..%2Fwork",
        "/logs/job-20260302-001%00",
        "/models/..%2F..%2Fsecrets/1",
        "/models/../../secrets/1",
        "/models/%2Fetc/1",
        "/models/digits/0",
        "/models/digits/-1",
        "/models/digits/latest",
        "/models/digits/9",
        "/reports/job-20260302-999",
        "/logs/job-20260302-999",
        "/docs",
        "/openapi.json",
    ],
)
def test_whatever_is_no_page_is_refused_and_names_no_file(client: TestClient, job: str, path: str) -> None:
    answer = client.get(path, headers=signed_in("ADMIN"))
    assert answer.status_code in {404, 422}
    assert "passwd" not in answer.text.replace("..%2F..%2Fetc%2Fpasswd", "").replace("../../etc/passwd", "")


def test_a_report_may_style_itself_and_do_nothing_else(client: TestClient, job: str) -> None:
    answer = client.get(f"/reports/{job}", headers=signed_in())
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    assert "allow-scripts" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<script>alert" not in answer.text


def test_a_log_is_text_whatever_the_training_printed(client: TestClient, job: str) -> None:
    answer = client.get(f"/logs/{job}", headers=signed_in())
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<script>alert(1)</script>" in answer.text


def test_a_model_is_its_manifest(client: TestClient, job: str) -> None:
    manifest = client.get("/models/digits/1", headers=signed_in()).json()
    assert manifest["model"] == "digits"
    assert manifest["files"][0]["path"] == "model.bin"
    assert manifest["lineage"]["job"] == job


def test_a_browser_sees_a_model_as_a_page_that_can_do_nothing(client: TestClient, platform: Platform, job: str) -> None:
    answer = client.get(
        "/models/digits/1", headers={**signed_in(), "Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    )
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["vary"] == "Accept"
    assert "<h1>digits/1</h1>" in answer.text
    assert f'href="/reports/{job}"' in answer.text
    assert "model.bin" in answer.text


def test_a_models_page_escapes_whatever_the_training_named() -> None:
    evil = "<script>alert(1)</script>"
    version = ModelVersion(
        model="digits", number=1, checksum="sha256:ab", uri="file:///models", created_at=NOW,
        files=(FileEntry(path=evil, size=1, sha256="cd"),), metrics={evil: 0.5},
        lineage={"job": f'"{evil}', "hyperparameters": {evil: evil}, "entrypoint": [evil], "resumed_from": None},
    )  # fmt: skip
    page = page_of(version, prefix="/fermion")
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") == 9
    assert "resumed_from" not in page


def test_a_models_page_shows_the_entrypoint_as_the_command_line_that_it_was() -> None:
    version = ModelVersion(
        model="digits", number=1, checksum="sha256:ab", uri="file:///models", created_at=NOW, files=(), metrics={},
        lineage={"entrypoint": ["python", "train.py", "--name", "two words"]},
    )  # fmt: skip
    assert "<td>python train.py --name &#x27;two words&#x27;</td>" in page_of(version, prefix="/fermion")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/models/digits/9", 404, "not_found"),
        ("/logs/nope", 404, "not_found"),
        ("/reports/nope", 404, "not_found"),
        ("/models/digits/latest", 404, "not_found"),
        ("/logs/{job}?attempt=7", 404, "not_found"),
        ("/logs/{job}?attempt=0", 422, "request_refused"),
    ],
)
def test_what_does_not_exist_is_told_as_problem_details(
    client: TestClient, job: str, path: str, status: int, code: str
) -> None:
    answer = client.get(path.format(job=job), headers=signed_in())
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["status"], answer.json()["code"]) == (status, status, code)
    assert "nope" not in answer.text
