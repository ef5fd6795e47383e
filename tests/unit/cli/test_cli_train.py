"""``fermion train`` with bad input: one answer, exit code 2, no Airflow needed."""

from __future__ import annotations

import json

from installations import Installation

SPEC = """
name: digits
pool: local/h100
image: nothing:1
repository: https://evil.example/x.git
entrypoint: python train.py
output_model: digits
"""


def test_what_does_not_read_and_what_does_not_exist_are_one_answer(installed: Installation) -> None:
    (installed.root / "run" / "job.yaml").write_text(SPEC + "gpus: 0\ncolour: red\n")
    code, told = installed.fermion("train", "--spec", "job.yaml", "--json")
    assert code == 2
    assert {problem["field"]: problem["code"] for problem in json.loads(told)["problems"]} == {
        "colour": "unknown_field",
        "gpus": "out_of_range",
        "pool": "unknown_pool",
        "image": "unknown_image",
        "repository": "host_not_allowed",
    }
    assert json.loads(installed.fermion("jobs", "--json")[1]) == []
    code, told = installed.fermion("train", "--spec", "job.yaml")
    heading, *lines = told.splitlines()
    assert (code, heading) == (2, "the training request has 5 problems:")
    assert [line.split(":")[0] for line in lines] == [
        f"  - {field}" for field in ("colour", "gpus", "pool", "image", "repository")
    ]


def test_a_refused_job_keeps_its_problems_for_programs(installed: Installation) -> None:
    (installed.root / "run" / "job.yaml").write_text(SPEC)
    code, told = installed.fermion("train", "--spec", "job.yaml", "--json")
    assert code == 2
    (job,) = json.loads(installed.fermion("jobs", "--json")[1])
    assert (job["status"], job["reason"]) == ("failed", "check_refused")
    assert job["numbers"]["problems"] == json.loads(told)["problems"]
    assert [problem["field"] for problem in job["numbers"]["problems"]] == ["pool", "image", "repository"]
