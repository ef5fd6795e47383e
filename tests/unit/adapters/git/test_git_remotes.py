"""Which repository URLs are allowed; every other gets all its problems at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fermion.adapters.git.remotes import MAX_LENGTH, Remote, Rules, parse, shown

PRODUCTION = Rules(hosts=["git.example.org", "git.example.org:8443", "GitHub.com", "other.org:2222"])
EMBEDDED = Rules(hosts=["git.example.org"], file_roots=[Path("/srv/git")], embedded=True)


@pytest.mark.parametrize(
    ("url", "scheme", "host"),
    [
        ("https://git.example.org/team/code.git", "https", "git.example.org"),
        ("https://git.example.org:443/team/code", "https", "git.example.org"),
        ("https://git.example.org:8443/team/code", "https", "git.example.org:8443"),
        ("https://GITHUB.com/team/code", "https", "github.com"),
        ("ssh://git@git.example.org/team/code.git", "ssh", "git.example.org"),
        ("ssh://git@other.org:2222/team/code.git", "ssh", "other.org:2222"),
        ("git@git.example.org:team/code.git", "ssh", "git.example.org"),
        ("github.com:team/code", "ssh", "github.com"),
    ],
)
def test_https_and_ssh_to_a_listed_host_are_allowed(url: str, scheme: str, host: str) -> None:
    remote = parse(url, PRODUCTION)

    assert isinstance(remote, Remote)
    assert (remote.scheme, remote.host) == (scheme, host)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/a", "http://localhost/a", "http://[::1]:80/a", "http://127.9.9.9/a"]
)
def test_plain_http_is_allowed_to_loopback_and_only_when_embedded(url: str) -> None:
    assert isinstance(parse(url, EMBEDDED), Remote)
    assert _codes(parse(url, PRODUCTION))[0] == "scheme"


def test_a_local_repository_is_allowed_below_a_root_and_only_when_embedded(tmp_path: Path) -> None:
    rules = Rules(file_roots=[tmp_path / "git"], embedded=True)
    (tmp_path / "git").mkdir()
    (tmp_path / "git" / "out").symlink_to(tmp_path)

    assert isinstance(parse(f"file://{tmp_path}/git/a", rules), Remote)
    assert _codes(parse(f"file://{tmp_path}/git/../a", rules)) == ["outside_roots"]
    assert _codes(parse(f"file://{tmp_path}/git/%2e%2e/a", rules)) == ["outside_roots"]
    assert _codes(parse(f"file://{tmp_path}/git/out/a", rules)) == ["outside_roots"]
    assert _codes(parse(f"file://{tmp_path}/gitty", rules)) == ["outside_roots"]
    assert _codes(parse(f"file://host{tmp_path}/git/a", rules)) == ["bad_host"]
    (outside,) = parse(f"file://{tmp_path}/gitty", rules)  # type: ignore[misc]
    assert outside.fix == f"Add a folder that holds it to code.file_roots in config/fermion.yaml (now: {tmp_path}/git)."
    assert _codes(parse(f"file://{tmp_path}/git/a", Rules(file_roots=[tmp_path]))) == ["scheme"]


@pytest.mark.parametrize("written", ["my%20B%C3%BCro/a", "my Büro/a"])
def test_a_local_path_may_be_written_as_it_is_or_encoded(tmp_path: Path, written: str) -> None:
    remote = parse(f"file://{tmp_path}/{written}", Rules(file_roots=[tmp_path], embedded=True))

    assert isinstance(remote, Remote)
    assert remote.folder == tmp_path / "my Büro" / "a"
    assert remote.url.endswith("/my%20B%C3%BCro/a"), "one repository, one mirror"


@pytest.mark.parametrize(
    ("url", "codes"),
    [
        ("", ["empty"]),
        ("https://git.example.org/" + "a" * MAX_LENGTH, ["too_long"]),
        ("-oProxyCommand=touch /tmp/x", ["option", "bad_characters"]),
        ("--upload-pack=/bin/sh", ["option"]),
        ("ext::sh -c touch% /tmp/x", ["remote_helper", "bad_characters"]),
        ("EXT::sh", ["remote_helper"]),
        ("fd::17", ["remote_helper"]),
        ("https::https://git.example.org/a", ["remote_helper"]),
        ("https://git.example.org/a\nb", ["bad_characters"]),
        ("https://git.example.org/a%0ahost=evil.org", ["bad_characters"]),
        ("https://git.example.org/a b", ["bad_characters"]),
        ("git://git.example.org/a", ["scheme"]),
        ("ftp://git.example.org/a", ["scheme"]),
        ("http://git.example.org/a", ["scheme"]),
        ("http://169.254.169.254/latest", ["scheme", "host_not_allowed"]),
        ("/srv/git/a", ["not_a_url"]),
        ("../a", ["not_a_url"]),
        ("https://git.example.org:port/a", ["not_a_url"]),
        ("https:///a", ["bad_host"]),
        ("https://-x/a", ["bad_host", "host_not_allowed"]),
        ("https://git.example.org", ["no_path"]),
        ("https://git.example.org/", ["no_path"]),
        ("https://evil.org/a", ["host_not_allowed"]),
        ("https://git.example.org.evil.org/a", ["host_not_allowed"]),
        ("https://git.example.org:9/a", ["host_not_allowed"]),
        ("https://user@git.example.org/a", ["credentials"]),
        ("https://user:s3cr3t@git.example.org/a", ["credentials"]),
        ("https://git.example.org@evil.org/a", ["credentials", "host_not_allowed"]),
        ("ssh://git:s3cr3t@git.example.org/a", ["credentials"]),
        ("ssh://-oProxyCommand=x@git.example.org/a", ["bad_user"]),
        ("ssh://-oProxyCommand=x/a", ["bad_host", "host_not_allowed"]),
        ("git@-oProxyCommand:a", ["bad_host", "host_not_allowed"]),
        ("-x@git.example.org:a", ["option"]),
        ("ssh://git@git.example.org/-x", ["option"]),
        ("git@git.example.org:-x", ["option"]),
        ("https://git.example.org/a?token=s3cr3t", ["query"]),
        ("https://git.example.org/a#s3cr3t", ["query"]),
        ("https://u:s3cr3t@evil.org/?x", ["credentials", "query", "no_path", "host_not_allowed"]),
    ],
)
def test_every_other_url_is_refused_with_all_its_problems(url: str, codes: list[str]) -> None:
    problems = parse(url, PRODUCTION)

    assert _codes(problems) == codes
    assert isinstance(problems, list)
    assert {problem.field for problem in problems} == {"repository"}
    assert all(problem.message and problem.fix for problem in problems)
    assert "s3cr3t" not in "".join(str(problem) for problem in problems)


@pytest.mark.parametrize(
    "url",
    [
        "https://u:s3cr3t@host/x",
        "https://s3cr3t@host/x",
        "u:s3cr3t@host:x",
        "https://host/x?s3cr3t",
        "https://host/#s3cr3t",
    ],
)
def test_a_url_in_a_message_shows_no_secret(url: str) -> None:
    assert "s3cr3t" not in shown(url)


def _codes(problems: object) -> list[str]:
    assert isinstance(problems, list), problems
    return [problem.code for problem in problems]
