"""Why a command could not be executed, in words."""

from __future__ import annotations

import subprocess

import pytest

from fermion.adapters.process.runner.executing import reason_of


def test_an_error_of_the_system_is_told_without_its_number() -> None:
    with pytest.raises(OSError, match="nothing-of-that-name") as caught:
        subprocess.run(["nothing-of-that-name"], check=False)
    assert reason_of(caught.value) == "No such file or directory (nothing-of-that-name)"


@pytest.mark.parametrize("error", [OSError("found no free port"), ValueError("embedded null byte")])
def test_any_other_error_is_told_as_it_is(error: Exception) -> None:
    assert reason_of(error) == str(error)
