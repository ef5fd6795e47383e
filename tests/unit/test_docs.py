"""The examples of README and docs: each is read by whatever would read it, and every link leads to something. What the README
lists is run by ``e2e/test_readme.py``, the page for training code of one's own by a test of its own."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML
from typer.core import TyperGroup
from typer.main import get_command

from fermion.cli.main import app
from fermion.domain.request import read_request
from fermion.domain.rollout.plan_reading import read_plan
from fermion.domain.serving.request import read_service
from fermion.errors import SettingsInvalid
from fermion.settings import load

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = [
    CHECKOUT / "README.md",
    CHECKOUT / "CHANGELOG.md",
    *sorted((CHECKOUT / "docs").rglob("*.md")),
    *sorted((CHECKOUT / "include" / "examples").rglob("*.md")),
]
LANGUAGES = frozenset({"", "sh", "bash", "yaml", "json", "python"})
JOB = {
    "name": "digits",
    "pool": "local/declared",
    "image": "digits:1",
    "repository": "https://github.com/team/digits.git",
    "entrypoint": "python train.py",
    "output_model": "digits",
}
"""An example may show a few fields of a job; these are the others."""

FENCE = re.compile(r"^ *```(?P<language>[^\n`]*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:\.venv/bin/)?fermion [^`\n]+)`")
COMMAND = re.compile(r"(?:^|[\s;|&(])(?:\.venv/bin/)?fermion[ \t]+([^;|&)\n]+)")
LINK = re.compile(r"\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Example:
    """One fenced block, by where it begins."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(CHECKOUT)}:{self.line}"


def examples_of(page: Path) -> Iterator[Example]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Example(page, line, found["language"].strip(), dedent(found["text"]))


EXAMPLES = [example for page in PAGES for example in examples_of(page)]


def of(*languages: str) -> pytest.MarkDecorator:
    """A test for each example in one of the languages."""
    found = [each for each in EXAMPLES if each.language in languages]
    return pytest.mark.parametrize("example", found, ids=str)


def test_every_example_is_in_a_language_that_is_checked_here() -> None:
    assert [f"{each}: {each.language}" for each in EXAMPLES if each.language not in LANGUAGES] == []
    assert {each.language for each in EXAMPLES} >= {"sh", "yaml", "json", "python"}, "this module finds none any more"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_no_fence_of_a_page_is_overlooked(page: Path) -> None:
    fences = re.findall(r"^\s*(?:```|~~~)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(list(examples_of(page)))


# --- YAML and JSON ----------------------------------------------------------------------------------------------------


def _as_configuration(text: str, state: Path) -> list[str]:
    file = state / "fermion.yaml"
    file.write_text(text)
    try:
        load(file, environ={"FERMION_ROOT": str(CHECKOUT), "FERMION_STATE": str(state)})
    except SettingsInvalid as invalid:
        return invalid.message.splitlines()
    return []


def problems_of(text: str, state: Path) -> list[str]:
    """What is wrong with an example in YAML, for the reader that finds least wrong with it."""
    found = YAML(typ="safe").load(text)
    if not isinstance(found, Mapping) or not found:
        return ["it holds no fields"]
    readers: list[Callable[[], list[str]]] = [
        lambda: [str(each) for each in read_request({**JOB, **found}).problems],
        lambda: [str(each) for each in read_plan(found).problems],
        lambda: [str(each) for each in read_service(found).problems],
        lambda: _as_configuration(text, state),
    ]
    return min((read() for read in readers), key=len)


@of("yaml")
def test_yaml_is_taken_by_what_reads_it(example: Example, tmp_path: Path) -> None:
    assert problems_of(example.text, tmp_path) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        pytest.param("gpus: 2\nmax_runtime: 2h\n", False, id="fields of a job"),
        pytest.param("gpus: two\n", True, id="a wrong value of a job"),
        pytest.param("gpuz: 2\n", True, id="a field that nothing has"),
        pytest.param("steps: [10, 100]\n", False, id="a plan"),
        pytest.param("steps: [100, 10]\n", True, id="a plan that goes down"),
        pytest.param("sync: {interval: 30s}\n", False, id="a configuration"),
        pytest.param("sync: {interval: 30}\n", True, id="a duration without a unit"),
        pytest.param("- 1\n", True, id="a list"),
    ],
)
def test_what_nothing_would_read_is_noticed(text: str, wrong: bool, tmp_path: Path) -> None:
    assert bool(problems_of(text, tmp_path)) is wrong


@of("json")
def test_json_is_json(example: Example) -> None:
    json.loads(example.text)


@of("sh", "bash")
def test_the_body_of_a_request_over_http_is_a_request(example: Example) -> None:
    for body in re.findall(r" -d '([^']*)'", example.text):
        sent = json.loads(body)
        assert "conf" not in sent or read_request(sent["conf"]).problems == ()


# --- commands ---------------------------------------------------------------------------------------------------------


def lines_of(text: str) -> list[str]:
    """The lines of a shell without their comments; one that goes on is one line."""
    return [re.sub(r"(?:^|\s)#.*$", "", line) for line in text.replace("\\\n", " ").splitlines()]


def commands_of(text: str) -> list[list[str]]:
    """The words behind each ``fermion``."""
    return [shlex.split(words) for line in lines_of(text) for words in COMMAND.findall(line)]


def parse(words: list[str], *, is_name: bool = False) -> None:
    """Read the words as the command does, and stop before it does anything; a name alone may lack its arguments.

    Raises:
        typer.TyperException: the command has no such subcommand, option or argument.
    """
    command: Any = get_command(app)
    context = command.make_context("fermion", list(words))
    while isinstance(command, TyperGroup) and (rest := [*context._protected_args, *context.args]):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context, resilient_parsing=is_name)


@of("sh", "bash", "")
def test_the_command_takes_what_an_example_gives_it(example: Example) -> None:
    for words in commands_of(example.text):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_the_command_takes_what_a_sentence_gives_it(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for quoted in INLINE.findall(text):
        for words in commands_of(re.sub(r"[\[\]]|…", "", quoted)):
            if words[0] != "COMMAND":
                parse(words, is_name=len(words) == 1)


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        pytest.param("fermion jobs   # what there is", [["jobs"]], id="a comment"),
        pytest.param("# fermion jobs", [], id="only a comment"),
        pytest.param(
            ".venv/bin/fermion stop J;  .venv/bin/fermion jobs", [["stop", "J"], ["jobs"]], id="two in a line"
        ),
        pytest.param('id=$(fermion job "$id" --json | jq)', [["job", "$id", "--json"]], id="within another"),
        pytest.param("fermion train \\\n  --wait", [["train", "--wait"]], id="over two lines"),
        pytest.param("exec scheduler fermion jobs", [["jobs"]], id="behind another"),
        pytest.param("psql fermion_jobs", [], id="another word"),
    ],
)
def test_commands_are_found_wherever_they_stand(text: str, commands: list[list[str]]) -> None:
    assert commands_of(text) == commands


@pytest.mark.parametrize(
    "words",
    [["jobz"], ["jobs", "--state", "failed"], ["jobs", "--status", "done"], ["job"], ["datasets", "register", "a"]],
    ids=" ".join,
)
def test_a_command_that_there_is_not_is_noticed(words: list[str]) -> None:
    with pytest.raises(typer.TyperException):
        parse(words)


def test_a_name_alone_must_be_a_command_too() -> None:
    parse(["train"], is_name=True)
    with pytest.raises(typer.TyperException):
        parse(["trian"], is_name=True)


@of("sh", "bash", "")
def test_what_an_example_calls_is_there(example: Example) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    for line in lines_of(example.text):
        assert set(re.findall(r"^make ([a-z-]+)", line)) <= targets
        for module in re.findall(r"python -m (tests[\w.]+)", line):
            assert (CHECKOUT / module.replace(".", "/")).with_suffix(".py").is_file(), module
        for path in re.findall(r"(?<![\w/])((?:include|config|docs|tests|dags)/[\w./-]*\w)", line):
            assert (CHECKOUT / path).exists(), path


# --- Python -----------------------------------------------------------------------------------------------------------


def names_in(module: str) -> set[str]:
    """What a module of ours has at its top, read and not imported."""
    folder = CHECKOUT / ("plugins" if module.startswith("fermion_airflow") else "include") / module.replace(".", "/")
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    found: set[str] = set()
    for each in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(each, ast.ClassDef | ast.FunctionDef):
            found.add(each.name)
        elif isinstance(each, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in each.names}
        else:
            found |= {name.id for name in ast.walk(each) if isinstance(name, ast.Name)}
    return found


@of("python")
def test_python_compiles_and_imports_what_there_is(example: Example) -> None:
    tree = ast.parse(example.text)
    compile(tree, str(example), "exec")
    for each in ast.walk(tree):
        if isinstance(each, ast.ImportFrom) and (each.module or "").split(".")[0] in ("fermion", "fermion_airflow"):
            assert {alias.name for alias in each.names} <= names_in(each.module or "")


# --- links ------------------------------------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """Where a link may lead to within a page: its headings, in lower case, joined by dashes."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_link_leads_to_something(page: Path) -> None:
    for found in LINK.finditer(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = found["target"].partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), found["target"]
        assert not anchor or anchor in anchors_of(target), found["target"]
