"""A spec that cannot be read: which one, where, and why, without the words of a library."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from fermion.cli.jobs import read_spec
from fermion.domain.request import parse_request
from fermion.errors import RequestRefused


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, "{name}: No such file or directory. Name a YAML or JSON file that is there.", id="no file"),
        pytest.param(b"name: \xff\xfe", "{name} is not text in UTF-8. Give a YAML or JSON file.", id="no text"),
        pytest.param(b"name: x\nnodes: [1,\n", "{name}, line 3, column 1: ", id="cut off"),
        pytest.param(b"name: x\nname: y\n", "{name}, line 2, column 1: found duplicate key", id="twice"),
        pytest.param(
            b'{"name": "x",\n "name": "y"}', "{name}, line 2, column 2: found duplicate key", id="twice in JSON"
        ),
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


def test_json_is_read_as_json(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text('{"hyperparameters": {"a": NaN, "b": -Infinity, "c": 1e5, "' + "k" * 2000 + '": "no"}}')
    found = read_spec(path)["hyperparameters"]
    assert isinstance(found, dict)
    assert [repr(found[key]) for key in "abc"] == ["nan", "-inf", "100000.0"]
    assert found["k" * 2000] == "no"
    with pytest.raises(RequestRefused, match="nan is not a finite number"):
        parse_request({"hyperparameters": found})


def test_yaml_goes_on_being_read_as_yaml(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: x\nhyperparameters: {a: .nan, b: 1e5}\n")
    assert repr(read_spec(path)["hyperparameters"]) == "{'a': nan, 'b': 100000.0}"
