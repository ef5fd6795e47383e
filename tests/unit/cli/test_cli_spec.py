"""A spec that cannot be read: which one, where, and why, without the words of a library."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from fermion.cli.jobs import read_spec
from fermion.errors import RequestRefused


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, "{name}: No such file or directory. Name a YAML or JSON file that is there.", id="no file"),
        pytest.param(b"name: \xff\xfe", "{name} is not text in UTF-8. Give a YAML or JSON file.", id="no text"),
        pytest.param(b"name: x\nnodes: [1,\n", "{name}, line 3, column 1: ", id="cut off"),
        pytest.param(b"name: x\nname: y\n", "{name}, line 2, column 1: found duplicate key", id="twice"),
        pytest.param(b"just words", "{name} holds no fields. Write one `key: value` a line.", id="no mapping"),
        pytest.param(b"", "{name} holds no fields.", id="empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_place(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestRefused) as refused:
        read_spec(path)
    (problem,) = refused.value.problems
    assert str(problem).startswith(f"spec: {said.format(name=path)}")
    assert "Errno" not in str(problem)
    assert "unicode string" not in str(problem)


def test_standard_input_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("just words"))
    with pytest.raises(RequestRefused, match="spec: standard input holds no fields"):
        read_spec(Path("-"))
