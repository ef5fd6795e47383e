"""The house keeps its own rules: sizes, names, and what stands in no file."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def modules(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if "__pycache__" not in path.parts)


MODULES = modules("dags", "plugins", "include/fermion")
TESTS = modules("tests")


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_longer_than_fifty_lines(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(each.name, (each.end_lineno or 0) - each.lineno + 1) for each in functions]
    assert [(name, length) for name, length in lengths if length > 50] == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        path
        for path in [*MODULES, *TESTS]
        if path.stat().st_size and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []


def test_no_module_that_a_loader_sees_hides_one_of_the_standard_library() -> None:
    seen = [*(ROOT / "plugins").glob("*.py"), *(ROOT / "dags").glob("*.py")]
    assert [path.name for path in seen if path.stem in sys.stdlib_module_names] == []
