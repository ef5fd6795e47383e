"""Entrypoints: the command that starts the training, as an argument list. No shell ever sees it.

A shell's characters in it are refused all the same: whoever writes ``a && b`` expects a shell, and would be surprised.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from fermion.domain.problems import Problem

MAX_WORDS = 64
MAX_LENGTH = 4096
SHELL_CHARACTERS = ";|&$`<>()*?\\"
_INTERPRETERS = frozenset({"python", "python3", "bash", "sh"})
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_FIX = "Write the command as it is typed in the repository's root, for example 'python train.py'."


def parse_entrypoint(value: object) -> tuple[tuple[str, ...], list[Problem]]:
    """The argument list and all that is wrong with it (then the list is not to be used).

    A string is split like a shell would, without being one. A lone ``train.py …`` becomes ``python train.py …``.
    """
    if not isinstance(value, str):
        return _checked(_words_of_list(value))
    if _CONTROL.search(value):
        return (), [_problem("control_character", "it holds a line break or another control character.", _FIX)]
    try:
        return _checked(shlex.split(value))
    except ValueError as error:
        return (), [_problem("unbalanced", f"its quotes do not match ({error}).", _FIX)]


def script_of(entrypoint: Sequence[str]) -> str | None:
    """The repository file that an entrypoint runs, or None when it names none (a module, a program of the image)."""
    first, *rest = entrypoint
    if first not in _INTERPRETERS:
        return first.removeprefix("./") if "/" in first else None
    for word in rest:
        if word in ("-m", "-c"):
            return None
        if not word.startswith("-"):
            return word.removeprefix("./")
    return None


def _words_of_list(value: object) -> list[str] | None:
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return list(value)
    return None


def _checked(words: list[str] | None) -> tuple[tuple[str, ...], list[Problem]]:
    if words is None:
        return (), [_problem("not_a_command", "it is neither a string nor a list of strings.", _FIX)]
    if not words:
        return (), [_problem("missing", "it is empty.", _FIX)]
    if words[0].endswith(".py") and "/" not in words[0]:
        words = ["python", *words]
    size = sum(len(word) + 1 for word in words)
    if len(words) > MAX_WORDS or size > MAX_LENGTH:
        message = f"it has {len(words)} words and {size} characters; at most {MAX_WORDS} words and {MAX_LENGTH} fit."
        return (), [_problem("too_long", message, "Move values into hyperparameters or into a file of the repository.")]
    problems = [problem for word in words for problem in _problems_of_word(word)]
    if not words[0] or words[0].startswith("-"):
        problems.append(_problem("not_a_program", f"it starts with {words[0]!r}, which is no program.", _FIX))
    return tuple(words), problems


def _problems_of_word(word: str) -> list[Problem]:
    found: list[Problem] = []
    bad = sorted({character for character in word if character in SHELL_CHARACTERS})
    if bad:
        message = f"the word {word[:60]!r} holds {' '.join(bad)}, and no shell runs here to understand it."
        fix = "Put the steps into a script in the repository and name that script."
        found.append(_problem("shell_character", message, fix))
    if _CONTROL.search(word):
        found.append(_problem("control_character", f"the word {word[:60]!r} holds a control character.", _FIX))
    for path in (word, word.partition("=")[2]):
        how = "an absolute path" if path.startswith(("/", "~")) else "a '..'" if ".." in path.split("/") else None
        if how is not None:
            message = f"{path[:60]!r} leads outside the repository ({how})."
            found.append(_problem("outside_repository", message, "Use a path relative to the repository's root."))
    return found


def _problem(code: str, message: str, fix: str) -> Problem:
    return Problem(field="entrypoint", code=code, message=message, fix=fix)
