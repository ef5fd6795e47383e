"""Code from real repositories over a real server: resolving, looking for files, checkouts, secrets, failures."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fermion.adapters.files.locks import lock
from fermion.adapters.files.placing import PLACED_AT
from fermion.adapters.git.mirror import Limits
from fermion.adapters.git.remotes import Remote, Rules
from fermion.adapters.git.repositories import Repositories
from fermion.adapters.git.runner import Runner, Ssh
from fermion.domain.jobs import Pins
from fermion.domain.retention import Freed
from fermion.errors import OutsideUnavailable, RequestRefused

TOKEN = "t0p-s3cr3t-t0ken"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n".format("0" * 64)


@pytest.fixture
def code(tmp_path: Path, served: Path) -> Repositories:
    return Repositories(tmp_path / "cache", rules=Rules(file_roots=[served], embedded=True))


@pytest.fixture(params=["http", "file"])
def url(request: pytest.FixtureRequest, repository: Any) -> str:
    if request.param == "file":
        return str(repository.bare.as_uri())
    return f"{request.getfixturevalue('server').url}/digits.git"


def codes(error: RequestRefused) -> list[str]:
    return [problem.code for problem in error.problems]


# --- resolve ---


def test_branches_tags_and_commits_mean_their_commit(code: Repositories, repository: Any, url: str) -> None:
    first = repository.commit({"train.py": "1"})
    repository.git("tag", "light")
    repository.git("tag", "--annotate", "--message", "one", "v1")
    second = repository.commit({"train.py": "2"}, branch="feature/x")

    assert code.resolve(url, "main") == first
    assert code.resolve(url, "feature/x") == second
    assert code.resolve(url, "refs/heads/feature/x") == second
    assert code.resolve(url, "light") == first
    assert code.resolve(url, "v1") == first
    assert code.resolve(url, second) == second
    assert code.resolve(url, second[:9]) == second
    assert code.resolve(url, "HEAD") == first


def test_a_branch_that_moves_is_resolved_anew(code: Repositories, repository: Any, url: str) -> None:
    repository.commit({"train.py": "1"})
    code.resolve(url, "main")
    second = repository.commit({"train.py": "2"})

    assert code.resolve(url, "main") == second


def test_a_short_commit_that_no_ref_points_to_is_found_in_the_history(
    code: Repositories, repository: Any, url: str
) -> None:
    first = repository.commit({"train.py": "1"})
    repository.commit({"train.py": "2"})

    assert code.resolve(url, first[:8]) == first
    assert code.resolve(url, first) == first


def test_a_short_name_that_is_a_branch_is_the_branch(code: Repositories, repository: Any, url: str) -> None:
    first = repository.commit({"train.py": "1"})
    second = repository.commit({"train.py": "2"}, branch=first[:8])

    assert code.resolve(url, first[:8]) == second


def test_a_branch_and_a_tag_of_one_name_are_ambiguous(code: Repositories, repository: Any, url: str) -> None:
    first = repository.commit({"train.py": "1"})
    repository.git("tag", "main")
    second = repository.commit({"train.py": "2"})

    with pytest.raises(RequestRefused) as caught:
        code.resolve(url, "main")

    assert codes(caught.value) == ["ambiguous"]
    assert code.resolve(url, "refs/tags/main") == first
    assert code.resolve(url, "refs/heads/main") == second


@pytest.mark.parametrize("ref", ["mian", "0123456", "f" * 40])
def test_what_the_repository_does_not_have_is_refused_with_what_it_has(
    code: Repositories, repository: Any, url: str, ref: str
) -> None:
    repository.commit({"train.py": "1"})

    with pytest.raises(RequestRefused, match=r"such as main") as caught:
        code.resolve(url, ref)

    assert [(problem.field, problem.code) for problem in caught.value.problems] == [("ref", "no_such_ref")]


def test_an_object_that_is_no_commit_is_refused(code: Repositories, repository: Any, url: str) -> None:
    repository.commit({"train.py": "1"})
    tree = repository.git("rev-parse", "HEAD^{tree}")

    with pytest.raises(RequestRefused) as caught:
        code.resolve(url, tree)

    assert codes(caught.value) == ["no_such_ref"]


def test_a_repository_without_commits_has_no_branch(code: Repositories, repository: Any, url: str) -> None:
    with pytest.raises(RequestRefused, match="no branch, tag or commit 'main'"):
        code.resolve(url, "main")


def test_all_problems_of_url_and_ref_are_told_at_once_and_nothing_is_run(code: Repositories, tmp_path: Path) -> None:
    with pytest.raises(RequestRefused) as caught:
        code.resolve(f"ext::touch {tmp_path}/pwned", "--upload-pack=x")

    assert [problem.field for problem in caught.value.problems] == ["repository", "repository", "ref"]
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "cache").exists()


def test_a_repository_that_is_not_there_is_refused(code: Repositories, repository: Any, url: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        code.resolve(url.replace("digits", "letters"), "main")

    assert codes(caught.value) == ["not_found"]


# --- has_file ---


def test_only_regular_files_of_the_commit_count(code: Repositories, repository: Any, url: str) -> None:
    (repository.work / "pkg").mkdir()
    (repository.work / "inside").symlink_to("pkg/train.py")
    (repository.work / "folder").symlink_to("pkg")
    (repository.work / "pkg" / "up").symlink_to("../inside")
    (repository.work / "outside").symlink_to("../../etc/passwd")
    (repository.work / "absolute").symlink_to("/etc/passwd")
    (repository.work / "loop").symlink_to("loop")
    commit = repository.commit({"pkg/train.py": "1", "run.sh": "#!/bin/sh", "a*b": "x"})

    there = ("pkg/train.py", "./pkg/train.py", "run.sh", "inside", "folder/train.py", "pkg/up", "pkg/../run.sh", "a*b")
    assert [path for path in there if not code.has_file(url, commit, path)] == []
    absent = ("", ".", "pkg", "none.py", "*.sh", "outside", "absolute", "loop", "../digits/run.sh", "/run.sh", "no/../run.sh",
              "-run.sh", "pkg/train.py/x")  # fmt: skip
    assert [path for path in absent if code.has_file(url, commit, path)] == []


def test_looking_for_a_file_fetches_no_file_contents(
    code: Repositories, repository: Any, server: Any, tmp_path: Path
) -> None:
    commit = repository.commit({"train.py": "1", "big.bin": os.urandom(2_000_000)})

    assert code.has_file(f"{server.url}/digits.git", commit, "big.bin")

    mirror = sum(path.stat().st_size for path in (tmp_path / "cache" / "git").rglob("*") if path.is_file())
    assert mirror < 100_000


# --- checkout ---


def test_a_checkout_is_the_commits_files_read_only_and_without_git(
    code: Repositories, repository: Any, url: str, tmp_path: Path
) -> None:
    (repository.work / "link.py").symlink_to("pkg/train.py")
    (repository.work / "dangling").symlink_to("not/there")
    first = repository.commit({"pkg/train.py": "1", "run.sh": "#!/bin/sh", ".gitattributes": "*.py eol=lf filter=evil"})
    (repository.work / "run.sh").chmod(0o755)
    commit = repository.commit({"pkg/train.py": "2", "Ünïcode name.txt": "x"})

    folder = Path(code.checkout(url, commit))

    assert folder == tmp_path / "cache" / "code" / folder.parent.name / commit
    assert (folder / "pkg" / "train.py").read_text() == "2"
    assert (folder / "link.py").read_text() == "2"
    assert (folder / "link.py").is_symlink()
    assert (folder / "Ünïcode name.txt").exists()
    assert not (folder / ".git").exists()
    modes = {name: oct((folder / name).stat().st_mode & 0o777) for name in ("pkg", "pkg/train.py", "run.sh", ".")}
    assert modes == {"pkg": "0o555", "pkg/train.py": "0o444", "run.sh": "0o555", ".": "0o555"}
    assert (Path(code.checkout(url, first)) / "pkg" / "train.py").read_text() == "1"


def test_jobs_of_one_commit_share_one_checkout_and_one_fetch(code: Repositories, repository: Any, server: Any) -> None:
    commit = repository.commit({"train.py": "1"})
    folders: list[str] = []
    threads = [
        threading.Thread(target=lambda: folders.append(code.checkout(f"{server.url}/digits.git", commit)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert len(folders) == 6
    assert len(set(folders)) == 1
    count = len(server.requests)
    code.checkout(f"{server.url}/digits.git", commit)
    assert len(server.requests) == count, "a checkout that is here needs no server"


def test_a_checkout_needs_no_filter_and_no_exact_fetch_from_the_server(
    code: Repositories, repository: Any, server: Any
) -> None:
    first = repository.commit({"train.py": "1"})
    repository.commit({"train.py": "2"})
    for key in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
        repository.config(repository.bare, key, "false")
    repository.config(repository.bare, "protocol.version", "0")
    server.behave = _without_protocol_2

    assert (Path(code.checkout(f"{server.url}/digits.git", first)) / "train.py").read_text() == "1"


def _without_protocol_2(request: Any) -> bool:
    del request.headers["Git-Protocol"]
    return False


def test_a_checkout_that_was_damaged_is_mended(code: Repositories, repository: Any, url: str) -> None:
    commit = repository.commit({"train.py": "1", "pkg/a.py": "a"})
    folder = Path(code.checkout(url, commit))
    (folder / "train.py").chmod(0o644)
    (folder / "train.py").write_text("evil")
    (folder / "pkg").chmod(0o755)
    (folder / "pkg" / "a.py").unlink()

    assert code.checkout(url, commit) == str(folder)

    assert (folder / "train.py").read_text() == "1"
    assert (folder / "pkg" / "a.py").read_text() == "a"
    assert (folder / "train.py").stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("how", ["a module", "a folder", "a link", "a folder of compiled code"])
def test_what_a_job_left_in_a_checkout_is_gone_before_the_next_job_runs_it(
    code: Repositories, repository: Any, url: str, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    commit = repository.commit({"train.py": "1", "pkg/a.py": "a"})
    folder = Path(code.checkout(url, commit))
    for each in (folder, folder / "pkg"):
        each.chmod(0o755)  # a job that runs as the owner may do that
    if how == "a module":
        (folder / "json.py").write_text("evil")
        os.utime(folder / "json.py", (PLACED_AT, PLACED_AT))
    if how == "a folder":
        (folder / "json").mkdir()
        (folder / "json" / "__init__.py").write_text("evil")
    if how == "a link":
        (folder / "pkg" / "b.py").symlink_to(tmp_path / "evil.py")
    if how == "a folder of compiled code":
        (folder / "pkg" / "__pycache__").mkdir()
        (folder / "pkg" / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"evil")
    inode = folder.stat().st_ino

    assert code.checkout(url, commit) == str(folder)

    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == {"train.py", "pkg", "pkg/a.py"}
    assert folder.stat().st_ino == inode, "jobs that run read this very folder"
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(folder) in told
    assert "not part of it" in told
    caplog.clear()
    code.checkout(url, commit)
    assert caplog.records == []


@pytest.mark.parametrize("how", ["written", "a link in its place", "a folder in its place", "another link", "no link"])
def test_code_that_a_job_changed_is_put_right_from_the_mirror(
    code: Repositories, repository: Any, url: str, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    (repository.work / "main.py").symlink_to("train.py")
    commit = repository.commit({"train.py": "1", "pkg/a.py": "a"})
    folder = Path(code.checkout(url, commit))
    evil = tmp_path / "evil.py"
    evil.write_text("evil")
    os.utime(evil, (PLACED_AT, PLACED_AT))
    folder.chmod(0o755)
    if how == "written":
        (folder / "train.py").chmod(0o644)
        (folder / "train.py").write_text("evil")
    if how in ("a link in its place", "a folder in its place"):
        (folder / "train.py").unlink()
    if how == "a link in its place":
        (folder / "train.py").symlink_to(evil)
        os.utime(folder / "train.py", (PLACED_AT, PLACED_AT), follow_symlinks=False)
    if how == "a folder in its place":
        (folder / "train.py").mkdir()
    if how in ("another link", "no link"):
        (folder / "main.py").unlink()
    if how == "another link":
        (folder / "main.py").symlink_to(evil)

    assert code.checkout(url, commit) == str(folder)

    assert (folder / "train.py").read_text() == "1"
    assert not (folder / "train.py").is_symlink()
    assert os.readlink(folder / "main.py") == "train.py"
    assert evil.read_text() == "evil"
    assert (folder / "train.py").stat().st_mode & 0o777 == 0o444
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ("main.py" if how in ("another link", "no link") else "train.py") in told
    caplog.clear()
    code.checkout(url, commit)
    assert caplog.records == []


def test_the_empty_folder_of_a_submodule_that_is_not_needed_is_part_of_the_checkout(
    code: Repositories, repository: Any, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    modules = '[submodule "docs"]\n\tpath = vendor/docs\n\turl = https://example.org/docs\n\tupdate = none\n'
    repository.commit({"train.py": "1", ".gitmodules": modules})
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},vendor/docs")
    repository.git("commit", "--quiet", "--message", "a submodule")
    repository.push()
    commit = repository.git("rev-parse", "HEAD")
    folder = Path(code.checkout(url, commit))
    there = sorted(folder.rglob("*"))

    code.checkout(url, commit)

    assert sorted(folder.rglob("*")) == there
    assert caplog.records == []


def test_links_that_lead_out_are_refused_by_name(code: Repositories, repository: Any, url: str, tmp_path: Path) -> None:
    (repository.work / "pkg").mkdir()
    (repository.work / "pkg" / "up").symlink_to("../../x")
    (repository.work / "absolute").symlink_to("/etc/passwd")
    (repository.work / "fine").symlink_to("train.py")
    commit = repository.commit({"train.py": "1"})

    with pytest.raises(RequestRefused) as caught:
        code.checkout(url, commit)

    assert codes(caught.value) == ["link_leaves", "link_leaves"]
    assert "absolute is a link to '/etc/passwd'" in str(caught.value)
    assert "pkg/up is a link to '../../x'" in str(caught.value)
    assert [path for path in tmp_path.glob("cache/code/*/*") if not path.name.startswith(".")] == []


def test_submodules_and_lfs_files_are_refused_together_by_path(code: Repositories, repository: Any, url: str) -> None:
    repository.commit({"train.py": "1"})
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},vendor/lib")
    (repository.work / "weights").mkdir()
    (repository.work / "weights" / "base.bin").write_text(LFS)
    repository.git("add", "weights")
    repository.git("commit", "--quiet", "--message", "outside things")
    repository.push()

    with pytest.raises(RequestRefused) as caught:
        code.checkout(url, repository.git("rev-parse", "HEAD"))

    assert codes(caught.value) == ["submodule", "lfs"]
    assert "vendor/lib is a submodule" in str(caught.value)
    assert "weights/base.bin is a Git LFS pointer" in str(caught.value)


def test_what_the_repository_itself_says_is_not_needed_is_left_out(
    code: Repositories, repository: Any, url: str
) -> None:
    modules = '[submodule "docs"]\n\tpath = vendor/docs\n\turl = https://example.org/docs\n\tupdate = none\n'
    repository.commit({"train.py": "1", ".gitmodules": modules, ".lfsconfig": "[lfs]\n\tfetchexclude = media, *.psd\n"})
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},vendor/docs")
    for path in ("media/film.mp4", "cover.psd"):
        (repository.work / path).parent.mkdir(exist_ok=True)
        (repository.work / path).write_text(LFS)
        repository.git("add", path)
    repository.git("commit", "--quiet", "--message", "outside things")
    repository.push()

    folder = Path(code.checkout(url, repository.git("rev-parse", "HEAD")))

    assert (folder / "train.py").read_text() == "1"


def test_a_checkout_runs_no_hook_and_no_filter_of_anybody(
    code: Repositories, repository: Any, served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository.commit({"train.py": "1", ".gitattributes": "* filter=evil"})
    touch = f"touch {tmp_path}/pwned"
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(f'[filter "evil"]\n\tsmudge = {touch}\n[core]\n\thooksPath = {home}\n')
    hooks = ("post-checkout", "post-index-change", "reference-transaction", "fsmonitor")
    for hook in [home / "post-checkout", *(repository.bare / "hooks" / name for name in hooks)]:
        hook.write_text(f"#!/bin/sh\n{touch}\n")
        hook.chmod(0o755)
    hostile = {"HOME": str(home), "GIT_SSH_COMMAND": touch, "GIT_DIR": "/nowhere", "GIT_WORK_TREE": "/nowhere"}
    hostile |= {"GIT_INDEX_FILE": "/nowhere/index", "GIT_OBJECT_DIRECTORY": "/nowhere/objects"}
    hostile |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "filter.evil.smudge", "GIT_CONFIG_VALUE_0": touch}
    for name, value in hostile.items():
        monkeypatch.setenv(name, value)

    folder = Path(code.checkout(repository.bare.as_uri(), code.resolve(repository.bare.as_uri(), "main")))

    assert folder.name == commit
    assert (folder / "train.py").read_text() == "1"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files that another user owns")
def test_a_local_repository_of_another_user_is_read(code: Repositories, repository: Any) -> None:
    commit = repository.commit({"train.py": "1"})
    for path in [repository.bare, *repository.bare.rglob("*")]:
        os.chown(path, 12345, 12345)

    assert code.resolve(repository.bare.as_uri(), "main") == commit
    assert Path(code.checkout(repository.bare.as_uri(), commit)).is_dir()


def unused_since(cache: Path, hours: float) -> None:
    """Everything there was last used so long ago."""
    then = time.time() - hours * 3600
    for path in [*cache.glob("git/*.lock"), *cache.glob("code/*/.records/*")]:
        os.utime(path, (then, then))


def test_over_the_limit_what_was_not_used_for_longest_leaves_and_what_is_needed_never(
    repository: Any, served: Path, tmp_path: Path
) -> None:
    url, cache = repository.bare.as_uri(), tmp_path / "cache"
    rules = Rules(file_roots=[served], embedded=True)
    code = Repositories(cache, rules=rules, size_limit=0)
    old, new = (repository.commit({"train.py": each, "big.bin": os.urandom(50_000)}) for each in "ab")
    folders = {commit: Path(code.checkout(url, commit)) for commit in (old, new)}
    running = Pins(image_digest="sha256:0", commit=new)

    assert code.tidy([]) == Freed(), "all of it was used just now"
    unused_since(cache, hours=2)
    assert Repositories(cache, rules=rules).tidy([]) == Freed(), "without a limit nothing leaves"
    assert Repositories(cache, rules=rules, size_limit=10**9).tidy([]) == Freed(), "it is not over this limit"
    freed = code.tidy([running])
    assert (freed.items, folders[old].exists(), folders[new].is_dir()) == (1, False, True)
    assert freed.size_bytes == 50_001
    assert code.tidy([running]) == Freed(), "the mirror holds a needed commit"
    assert code.tidy([]).items == 2
    assert not list(cache.glob("git/*.git"))
    assert Path(code.checkout(url, old), "train.py").read_text() == "a", "everything can be fetched again"


def test_a_mirror_in_which_somebody_writes_stays(repository: Any, served: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    code = Repositories(cache, rules=Rules(file_roots=[served], embedded=True), size_limit=0)
    code.resolve(repository.bare.as_uri(), repository.commit({"train.py": "1"}))
    (mirror,) = cache.glob("git/*.git")
    with lock(mirror.with_name(f"{mirror.name}.lock"), timeout=timedelta(seconds=1), what="a fetch"):
        unused_since(cache, hours=2)
        assert code.tidy([]) == Freed()
    unused_since(cache, hours=2)
    assert code.tidy([]).items == 1


# --- credentials and failures ---


@pytest.fixture
def guarded(server: Any, repository: Any) -> Any:
    server.account = ("robot", TOKEN)
    repository.commit({"train.py": "1", "big.bin": os.urandom(3_000_000)})
    return server


def with_credentials(tmp_path: Path, given: tuple[str, str] | None, **changes: Any) -> Repositories:
    return Repositories(tmp_path / "cache", rules=Rules(embedded=True), credentials=lambda host: given, **changes)


def test_credentials_reach_the_server_and_nothing_else(guarded: Any, repository: Any, tmp_path: Path) -> None:
    asked: list[str] = []

    def credentials(host: str) -> tuple[str, str]:
        asked.append(host)
        return ("robot", TOKEN)

    code = Repositories(tmp_path / "cache", rules=Rules(embedded=True), credentials=credentials)
    url = f"{guarded.url}/digits.git"
    with _watching_command_lines() as seen:
        folder = code.checkout(url, code.resolve(url, "main"))

    assert (Path(folder) / "train.py").read_text() == "1"
    assert set(asked) == {guarded.host}
    assert any(b"fetch" in line for line in seen)
    assert [line for line in seen if TOKEN.encode() in line] == []
    stored = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in stored if TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("given", "code_of_problem"),
    [(None, "credentials_missing"), (("robot", f"wrong-{TOKEN}"), "credentials_refused")],
)
def test_missing_and_wrong_credentials_are_told_without_the_token(
    guarded: Any, tmp_path: Path, given: tuple[str, str] | None, code_of_problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with pytest.raises(RequestRefused) as caught:
        with_credentials(tmp_path, given).resolve(f"{guarded.url}/digits.git", "main")

    assert codes(caught.value) == [code_of_problem]
    assert TOKEN not in _everything_said(caught.value)
    assert TOKEN not in caplog.text


def test_a_redirect_is_not_followed_and_gets_no_credentials(guarded: Any, tmp_path: Path) -> None:
    def redirect(request: Any) -> bool:
        if request.path.startswith("/elsewhere"):
            return False
        request.send_response(302)
        request.send_header("Location", f"/elsewhere{request.path}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    guarded.behave = redirect
    with pytest.raises(RequestRefused) as caught:
        with_credentials(tmp_path, ("robot", TOKEN)).resolve(f"{guarded.url}/digits.git", "main")

    assert codes(caught.value) == ["redirected"]
    assert [asked for asked in guarded.requests if "elsewhere" in asked] == []
    assert set(guarded.authorizations) == {""}


def test_a_server_that_hangs_is_given_up_and_no_process_is_left(server: Any, repository: Any, tmp_path: Path) -> None:
    repository.commit({"train.py": "1"})
    release = threading.Event()

    def hang(request: Any) -> bool:
        release.wait(30)
        return False

    server.behave = hang
    limits = Limits(answer=timedelta(seconds=0.5), transfer=timedelta(seconds=0.5))
    began = time.monotonic()
    try:
        with pytest.raises(OutsideUnavailable, match=r"did not end within 0\.5 s"):
            with_credentials(tmp_path, ("robot", TOKEN), limits=limits).resolve(f"{server.url}/digits.git", "main")
    finally:
        release.set()

    assert time.monotonic() - began < 20
    assert _processes_with(server.url.encode()) == []


def test_a_server_that_is_gone_or_out_of_order_is_unavailable(server: Any, repository: Any, tmp_path: Path) -> None:
    code = with_credentials(tmp_path, ("robot", TOKEN))

    def fail(request: Any) -> bool:
        request.send_response(503)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    server.behave = fail
    with pytest.raises(OutsideUnavailable, match="503"):
        code.resolve(f"{server.url}/digits.git", "main")
    with pytest.raises(OutsideUnavailable, match="Call again"):
        code.resolve("http://127.0.0.1:1/digits.git", "main")


def test_locks_that_a_killed_git_left_do_not_stop_the_next(code: Repositories, repository: Any, tmp_path: Path) -> None:
    url = repository.bare.as_uri()
    first = repository.commit({"train.py": "1"})
    code.checkout(url, first)
    (mirror,) = (tmp_path / "cache" / "git").glob("*.git")
    for name in ("shallow.lock", "config.lock", f"refs/fermion/{first}.lock"):
        (mirror / name).touch()
    second = repository.commit({"train.py": "2"})

    assert (Path(code.checkout(url, second)) / "train.py").read_text() == "2"


class _watching_command_lines:
    """Collects the command lines of every process that git started here, while it is entered."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._seen.update(line for line in _command_lines() if b"git" in line or b"askpass" in line)

    def __enter__(self) -> set[bytes]:
        self._thread.start()
        return self._seen

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)


def _command_lines() -> Iterator[bytes]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                yield (entry / "cmdline").read_bytes()
            except OSError:
                continue


def _processes_with(text: bytes) -> list[bytes]:
    return [line for line in _command_lines() if text in line]


def _everything_said(error: BaseException | None) -> str:
    said = ""
    while error is not None:
        said += f"{error!r} {error} {getattr(error, '__dict__', '')}"
        error = error.__cause__ or error.__context__
    return said


@pytest.mark.parametrize("form", ["ssh://git@git.example.org{path}", "git@git.example.org:{path}"])
def test_ssh_is_called_without_prompts_and_never_accepts_an_unknown_host(
    repository: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    commit = repository.commit({"train.py": "1"})
    programs = tmp_path / "programs"
    programs.mkdir()
    # A program in ssh's place that notes how it is called and runs the server's side here.
    (programs / "ssh").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nfor last; do :; done\nunset GIT_DIR\nexec sh -c "$last"\n'
    )
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    ssh = Ssh(key_file=tmp_path / "my key", known_hosts_file=tmp_path / "hosts")
    code = Repositories(tmp_path / "cache", rules=Rules(hosts=["git.example.org"]), ssh=ssh)
    url = form.format(path=repository.bare)

    assert Path(code.checkout(url, code.resolve(url, "main"))).name == commit

    calls = (tmp_path / "calls").read_text().splitlines()
    for option in (
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        f"-i {tmp_path}/my key",
        f"UserKnownHostsFile={tmp_path}/hosts",
    ):
        assert all(option in call for call in calls)
    assert all("git@git.example.org" in call for call in calls)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Username for 'https://git.example.org:8443': ", "robot"),
        ("Password for 'https://robot@git.example.org:8443': ", TOKEN),
        ("Username for 'https://git.example.org': ", None),
        ("Username for 'http://git.example.org:8443': ", None),
        ("Password for 'https://robot@git.example.org:8443.evil.org': ", None),
        ("Password for 'https://robot@evil.org/@git.example.org': ", None),
        ("Enter passphrase for key '/root/.ssh/id_rsa': ", None),
    ],
)
def test_the_helper_answers_only_for_the_host_that_the_credentials_are_for(
    tmp_path: Path, prompt: str, answer: str | None
) -> None:
    host = "git.example.org:8443"
    remote = Remote(url=f"https://{host}/a", scheme="https", host=host)
    runner = Runner(
        remote=remote, folder=tmp_path / "a.git", settings=tmp_path / "s", credentials=lambda host: ("robot", TOKEN)
    )
    runner.prepare()
    given = {"FERMION_GIT_SCHEME": "https", "FERMION_GIT_HOST": host, "FERMION_GIT_USER": "robot"}

    ran = subprocess.run(
        [str(tmp_path / "s" / "askpass.sh"), prompt],
        env={**given, "FERMION_GIT_TOKEN": TOKEN, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )

    assert (ran.returncode, ran.stdout) == ((0, f"{answer}\n") if answer else (1, ""))
    assert os.stat(tmp_path / "s" / "askpass.sh").st_mode & 0o077 == 0
