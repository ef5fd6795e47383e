"""What keeps a runner going on its own: its imports, its ports, and the command lines by which it is known."""

from __future__ import annotations

import ast
import socket
import sys
from pathlib import Path

import pytest

from fermion.adapters.process import marks, runner
from fermion.adapters.process.runner.cpu import Cpu
from fermion.adapters.process.runner.endpoints import Claims, filled, is_free, port_environment

PACKAGE = Path(runner.__file__).parent


@pytest.mark.parametrize("module", sorted(path.name for path in PACKAGE.glob("*.py")))
def test_a_runner_needs_nothing_but_the_standard_library_and_itself(module: str) -> None:
    tree = ast.parse((PACKAGE / module).read_text())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert all(name.partition(".")[0] in sys.stdlib_module_names for name in names), names


def test_everything_is_imported_before_a_runner_detaches() -> None:
    for path in PACKAGE.glob("*.py"):
        inner = [
            node
            for function in ast.walk(ast.parse(path.read_text()))
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert inner == [], path.name


@pytest.mark.parametrize(
    ("words", "is_runner"),
    [
        pytest.param(["python", "-I", "-S", "/a/process/runner/runner.py", "/w/x"], True, id="this version"),
        pytest.param(["python", "-I", "-S", "/a/process/runner.py", "/w/x"], True, id="the version in one file"),
        pytest.param(["python", "runner.py", "-I", "-S", "/w/x"], False, id="a training with a file of that name"),
        pytest.param(["python", "-I", "-S", "/a/serve.py", "/w/x"], False, id="another program"),
        pytest.param(["sleep", "120"], False, id="a child of a training"),
    ],
)
def test_runners_are_known_by_their_command_line(words: list[str], is_runner: bool) -> None:
    assert marks.is_runner(words) is is_runner


def test_no_two_runners_choose_the_same_port(tmp_path: Path) -> None:
    claims = [Claims(str(tmp_path)) for _ in range(20)]
    chosen = [port for each in claims for port in each.choose(["http", "grpc"], {}).values()]
    assert len(set(chosen)) == 40
    assert all(is_free(port) for port in chosen)


def test_ports_are_kept_while_they_are_free(tmp_path: Path) -> None:
    claims = Claims(str(tmp_path))
    first = claims.choose(["http", "grpc"], {})
    assert claims.choose(["http", "grpc"], first) == first
    with socket.create_server(("127.0.0.1", first["http"])):
        second = claims.choose(["http", "grpc"], first)
    assert second["grpc"] == first["grpc"]
    assert second["http"] not in first.values()
    assert Claims(str(tmp_path)).choose(["http"], {"http": first["http"]}) == {"http": first["http"]}  # it was let go


def test_a_port_that_another_runner_claims_is_not_taken(tmp_path: Path) -> None:
    theirs = Claims(str(tmp_path))
    port = theirs.choose(["http"], {})["http"]
    assert Claims(str(tmp_path)).choose(["http"], {"http": port})["http"] != port


def test_only_the_places_of_ports_are_filled() -> None:
    assert filled('{port:http} {port:other} {"a": {}}', {"http": 1}) == '1 {port:other} {"a": {}}'


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        pytest.param({}, {}, id="none"),
        pytest.param({"http": 1, "grpc": 2}, {"PORT": "1", "HTTP_PORT": "1", "GRPC_PORT": "2"}, id="http first"),
        pytest.param({"grpc": 2, "http": 1}, {"PORT": "1", "HTTP_PORT": "1", "GRPC_PORT": "2"}, id="http last"),
        pytest.param({"grpc": 2, "my-admin": 3}, {"PORT": "2", "GRPC_PORT": "2", "MY_ADMIN_PORT": "3"}, id="no http"),
    ],
)
def test_the_environment_tells_each_port(ports: dict[str, int], expected: dict[str, str]) -> None:
    assert port_environment(ports) == expected


def test_without_a_limit_nothing_keeps_the_cpu() -> None:
    cpu = Cpu("x", None, None)
    cpu.join()
    assert cpu.kept_by is None
