"""What a model draft must be before either repository takes it."""

from __future__ import annotations

from pathlib import Path

from fermion.adapters.files.trees import Tree, look
from fermion.domain.artifacts import ModelDraft
from fermion.domain.model_names import problems_of
from fermion.domain.problems import Problem
from fermion.errors import RequestRefused


def checked_files(draft: ModelDraft, folder: Path) -> Tree:
    """The files to publish.

    Raises:
        RequestRefused: the name is not one, the folder holds no file, or a link leads out of it; all at once.
    """
    problems = problems_of(draft.model, field="model")
    if folder.is_dir():
        tree = look(folder, field="output")
        problems += tree.problems
        if not tree.files and not tree.problems:
            problems.append(_empty(f"{folder} holds no file."))
    else:
        tree = Tree(root=folder, files=(), problems=())
        problems.append(_empty(f"{folder} is not a folder."))
    if problems:
        raise RequestRefused(problems, what=f"model '{draft.model}'")
    return tree


def _empty(message: str) -> Problem:
    fix = "Write the model's files below the folder that FERMION_OUTPUT_DIR names."
    return Problem(field="output", code="no_files", message=message, fix=fix)
