"""``fermion datasets``: what the command prints, and its exit codes."""

from __future__ import annotations

import json

from installations import Installation


def test_a_folder_is_registered_listed_and_forgotten(installed: Installation) -> None:
    assert json.loads(installed.fermion("datasets", "--json")[1]) == []
    code, told = installed.fermion("datasets", "register", "digits", "data of us/digits", "--json")
    made = json.loads(told)
    assert (code, made["name"], made["files"], made["size_bytes"]) == (0, "digits", 1, 3)
    assert made["uri"] == (installed.root / "run" / "data of us" / "digits").as_uri()
    (listed,) = json.loads(installed.fermion("datasets", "--json")[1])
    assert (listed["name"], listed["uri"], listed["from"]) == ("digits", made["uri"], "registered")
    assert made["is_new"]
    assert [version["checksum"] for version in listed["versions"]] == [made["checksum"]]
    assert "digits  registered" in installed.fermion("datasets")[1]
    again = installed.fermion("datasets", "register", "digits", "data of us/digits")[1]
    assert again.endswith(f"1 file, 3 bytes at {made['uri']}. Its content was known already.\n")
    assert installed.fermion("datasets", "forget", "digits")[0] == 0
    assert installed.fermion("datasets", "forget", "digits")[0] == 4


def test_what_cannot_be_registered_is_answered_with_all_problems(installed: Installation) -> None:
    code, told = installed.fermion("datasets", "register", "No Name", "/etc", "--json")
    assert code == 2
    assert {problem["code"] for problem in json.loads(told)["problems"]} == {"bad_name", "outside_roots"}
