"""Requests: what is accepted, what each kind of bad input is answered with, and that payloads are exact."""

from __future__ import annotations

import json
import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermion.domain.entrypoints import script_of
from fermion.domain.jobs import JobSpec
from fermion.domain.request import (
    MAX_GPUS_PER_NODE,
    MAX_HYPERPARAMETERS,
    MAX_PRIORITY,
    arguments_of,
    from_payload,
    parse_request,
    read_request,
    same_request,
    to_payload,
)
from fermion.errors import RequestRefused

VALID = {
    "name": "digits",
    "pool": "local/declared",
    "image": "digits:1",
    "repository": "https://github.com/team/digits.git",
    "entrypoint": "python train.py",
    "output_model": "digits",
}


def refused(**changes: object) -> dict[str, set[str]]:
    """The problems of the valid request with these changes: field to codes."""
    with pytest.raises(RequestRefused) as caught:
        parse_request({**VALID, **changes})
    found: dict[str, set[str]] = {}
    for problem in caught.value.problems:
        assert problem.message
        assert problem.fix
        assert len(str(problem)) < 700, "a message repeats too much of what was sent"
        found.setdefault(problem.field, set()).add(problem.code)
    return found


# --- accepted --------------------------------------------------------------------------------------------------------


def test_the_least_request_gets_the_defaults() -> None:
    spec = parse_request(VALID)
    assert spec == JobSpec(
        name="digits",
        pool="local/declared",
        image="digits:1",
        repository="https://github.com/team/digits.git",
        entrypoint=("python", "train.py"),
        output_model="digits",
    )
    assert (spec.ref, spec.gpus, spec.max_runtime, spec.owner) == ("main", 1, None, "unknown")


def test_the_api_names_mean_the_same_as_the_canonical_ones() -> None:
    camel = {
        "name": "digits",
        "poolId": "local/declared",
        "imageId": "digits:1",
        "datasetIds": ["digits"],
        "gitRepo": "https://github.com/team/digits.git",
        "gitBranch": "dev",
        "entrypoint": ["python", "train.py"],
        "outputModel": "digits",
        "gpuCount": 2,
        "maxRuntime": "2h",
    }
    snake = {**VALID, "datasets": ["digits"], "ref": "dev", "gpus_per_node": 2, "max_runtime": "120m"}
    assert parse_request(camel) == parse_request(snake)


def test_a_form_may_send_strings_and_leave_fields_empty() -> None:
    spec = parse_request(
        {
            **VALID,
            "gpus": "4",
            "nodes": "2",
            "datasets": "digits, more",
            "priority": "-5",
            "max_runtime": "90",
            "preemptible": "False",
            "checkpoint": "",
            "memory_mib": None,
            "queue_timeout": "",
            "hyperparameters": '{"epochs": 3}',
        }
    )
    assert (spec.nodes, spec.gpus_per_node, spec.priority) == (2, 2, -5)
    assert spec.datasets == ("digits", "more")
    assert spec.max_runtime == timedelta(seconds=90)
    assert (spec.preemptible, spec.checkpoint, spec.memory_mib, spec.queue_timeout) == (False, None, None, None)
    assert spec.hyperparameters == {"epochs": 3}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        pytest.param("python train.py", ("python", "train.py"), id="a program and a script"),
        pytest.param("train.py --fast", ("python", "train.py", "--fast"), id="a lone script is run by python"),
        pytest.param("python -m pack.train", ("python", "-m", "pack.train"), id="a module"),
        pytest.param("python train.py 'two words'", ("python", "train.py", "two words"), id="quotes join words"),
        pytest.param(["./run.sh", "a=b/c"], ("./run.sh", "a=b/c"), id="a list is taken as it is"),
    ],
)
def test_an_entrypoint_becomes_an_argument_list(written: object, meant: tuple[str, ...]) -> None:
    assert parse_request({**VALID, "entrypoint": written}).entrypoint == meant


@pytest.mark.parametrize(
    ("entrypoint", "script"),
    [
        (("python", "train.py"), "train.py"),
        (("python", "-u", "./src/train.py"), "src/train.py"),
        (("python", "-m", "pack.train"), None),
        (("./run.sh",), "run.sh"),
        (("torchrun", "train.py"), None),
    ],
)
def test_the_script_of_an_entrypoint_is_the_file_that_the_repository_must_hold(
    entrypoint: tuple[str, ...], script: str | None
) -> None:
    assert script_of(entrypoint) == script


@pytest.mark.parametrize(
    "repository",
    [
        "https://github.com/team/digits.git",
        "https://git.example.com:8443/team/digits",
        "ssh://git@github.com/team/digits.git",
        "git@github.com:team/digits.git",
        "file:///srv/my%20git/digits.git",
        "file:///srv/mein Büro/digits.git",
        "file:///srv/git/digits.git",
        "http://127.0.0.1:3000/team/digits.git",
    ],
)
def test_these_repositories_are_accepted(repository: str) -> None:
    assert parse_request({**VALID, "repository": repository}).repository == repository


# --- refused ---------------------------------------------------------------------------------------------------------


def test_all_problems_come_at_once() -> None:
    found = refused(pool="nowhere", gpus=0, repository="ext::sh -c id", entrypoint="a; b", output_model="../x", lr=1)
    assert set(found) == {"pool", "gpus", "repository", "entrypoint", "output_model", "lr"}


def test_every_required_field_is_asked_for() -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_request({})
    assert {problem.field: problem.code for problem in caught.value.problems} == dict.fromkeys(VALID, "missing")


def test_a_misspelt_field_gets_a_suggestion() -> None:
    with pytest.raises(RequestRefused, match="Did you mean hyperparameters"):
        parse_request({**VALID, "hyperparametres": {}})


def test_thousands_of_unknown_fields_give_a_short_answer() -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_request({**VALID, **{f"unknown{number}": 1 for number in range(5000)}})
    assert len(caught.value.problems) == 21
    assert "4980 more" in str(caught.value)


def test_a_field_given_under_two_names_must_agree() -> None:
    assert parse_request({**VALID, "poolId": "local/declared"}).pool == "local/declared"
    assert refused(poolId="other/declared") == {"pool": {"given_twice"}}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        pytest.param(0, "out_of_range", id="zero"),
        pytest.param(-1, "out_of_range", id="negative"),
        pytest.param(0.5, "fractional", id="a half"),
        pytest.param("1.5", "fractional", id="a fraction as text"),
        pytest.param(MAX_GPUS_PER_NODE + 1, "out_of_range", id="one over the most"),
        pytest.param(10**5000, "out_of_range", id="a number too long to print"),
        pytest.param("many", "not_a_number", id="a word"),
        pytest.param("２", "not_a_number", id="a digit of another width"),
        pytest.param("٣", "not_a_number", id="a digit of another script"),
        pytest.param("２.0", "not_a_number", id="a fraction with such a digit"),
        pytest.param("1_0", "not_a_number", id="an underscore"),
        pytest.param("inf", "not_a_number", id="infinity"),
        pytest.param("1e", "not_a_number", id="half an exponent"),
        pytest.param(True, "not_a_number", id="a bool is no number"),
        pytest.param(math.nan, "not_a_number", id="not a number"),
        pytest.param([1], "not_a_number", id="a list"),
    ],
)
@pytest.mark.parametrize("field", ["gpus_per_node", "nodes"])
def test_gpus_and_nodes_are_whole_positive_and_plausible(field: str, value: object, code: str) -> None:
    if field == "nodes" and value == MAX_GPUS_PER_NODE + 1:
        value = 1025
    assert refused(**{field: value}) == {field: {code}}


@pytest.mark.parametrize("written", ["2", "+2", "2.0", "2.", "2e0", 2.0])
def test_a_whole_number_may_be_written_in_these_ways(written: object) -> None:
    assert parse_request({**VALID, "gpus": written}).gpus == 2


def test_the_most_gpus_per_node_is_accepted() -> None:
    assert parse_request({**VALID, "gpus_per_node": MAX_GPUS_PER_NODE}).gpus == MAX_GPUS_PER_NODE


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        pytest.param(
            {"gpus": 3, "nodes": 2}, "uneven", "3 GPUs over 2 nodes cannot be spread evenly.", id="not the same on each"
        ),
        pytest.param(
            {"gpus": 3, "gpus_per_node": 2},
            "uneven",
            "3 GPUs over 1 node with 2 each cannot be spread evenly.",
            id="the two numbers disagree",
        ),
        pytest.param(
            {"gpus": MAX_GPUS_PER_NODE * 2 + 2, "nodes": 2},
            "too_many_per_node",
            "130 GPUs over 2 nodes is more than 64 on a node, the most that one may be asked for."
            " Ask for at least 3 nodes",
            id="too many on each node",
        ),
        pytest.param(
            {"gpus": 99},
            "too_many_per_node",
            "99 GPUs over 1 node is more than 64 on a node, the most that one may be asked for."
            " Ask for at least 2 nodes",
            id="too many on one node",
        ),
    ],
)
def test_gpus_in_all_must_fit_the_nodes(asked: dict[str, object], code: str, said: str) -> None:
    assert refused(**asked) == {"gpus": {code}}
    with pytest.raises(RequestRefused, match=said):
        parse_request({**VALID, **asked})


@pytest.mark.parametrize(
    "repository",
    [
        pytest.param("ext::sh -c 'id'", id="a transport that runs commands"),
        pytest.param("ext::id", id="the same without a space"),
        pytest.param("--upload-pack=id", id="an option"),
        pytest.param("ssh://-oProxyCommand=id/x", id="a host that is an option"),
        pytest.param("ssh://git@-oProxyCommand=id/x", id="a host that is an option, behind a user"),
        pytest.param("https://github.com/-x/y", id="a path part that is an option"),
        pytest.param("https://user:word@github.com/a/b", id="a password"),
        pytest.param("https://token@github.com/a/b", id="a user on https"),
        pytest.param("ssh://git:word@github.com/a/b", id="a password on ssh"),
        pytest.param("ssh://-x@github.com/a/b", id="a user that is an option, on ssh"),
        pytest.param("-x@github.com:team/x.git", id="a user that is an option"),
        pytest.param("git@-oProxyCommand=id:x", id="a host that is an option, without a scheme"),
        pytest.param("git@github.com:-x", id="a path that is an option, without a scheme"),
        pytest.param("git@github.com:../x", id="a way up, without a scheme"),
        pytest.param("git:word@github.com:x", id="a password, without a scheme"),
        pytest.param("git://github.com/a/b", id="an unknown scheme"),
        pytest.param("/srv/git/x.git", id="a bare path"),
        pytest.param("https://github.com/a/b\nc", id="a line break"),
        pytest.param("https://github.com/a/b%0Ac", id="a line break in disguise"),
        pytest.param("https://github.com/a b", id="a space"),
        pytest.param("https:///a/b", id="no host"),
        pytest.param("https://github.com/", id="no path"),
        pytest.param("https://github.com/a/b?x=1", id="a query"),
        pytest.param("https://github.com:99999/a/b", id="an impossible port"),
        pytest.param("https://[::1/a", id="not a URL"),
        pytest.param("file://server/srv/x.git", id="a file on another host"),
        pytest.param("file:///srv/../etc", id="a way up"),
        pytest.param("file:///srv/%2e%2e/etc", id="a way up in disguise"),
        pytest.param("file://${FERMION_STATE}/x.git", id="a variable that nobody filled in"),
        pytest.param("https://github.com/" + "a" * 3000, id="too long"),
        pytest.param("https://github.com/a/\ud800", id="half a character"),
    ],
)
def test_these_repositories_are_refused(repository: str) -> None:
    assert refused(repository=repository) == {"repository": {"unsafe"}}


@pytest.mark.parametrize(
    ("repository", "told"),
    [
        pytest.param("ext::id", "git's ext:: transport, which runs commands", id="a transport"),
        pytest.param("ext::sh -c touch% /tmp/pwn", "git's ext:: transport", id="a transport, and spaces"),
        pytest.param("ext\x1b[31m::sh\n-c", "git's ext[31m:: transport", id="a transport, and control characters"),
        pytest.param("ext::sh -c ${X}", "git's ext:: transport", id="a transport, and a variable"),
        pytest.param(
            "--upload-pack=touch /tmp/pwn", "starts with a dash, as an option does", id="an option, and a space"
        ),
        pytest.param("-ext::sh -c id", "starts with a dash", id="an option with a transport"),
    ],
)
def test_what_could_run_a_command_is_named_before_anything_else(repository: str, told: str) -> None:
    (problem,) = read_request({**VALID, "repository": repository}).problems
    assert told in problem.message


@pytest.mark.parametrize(
    "ref",
    [
        "-x",
        "--upload-pack=id",
        "a..b",
        "a b",
        "a\nb",
        "a~1",
        "a^",
        "a:b",
        "a@{1}",
        "/a",
        "a/",
        "a.lock",
        "a//b",
        "a\\b",
        ".a",
    ],
)
def test_these_refs_are_refused(ref: str) -> None:
    assert refused(ref=ref) == {"ref": {"unsafe"}}


@pytest.mark.parametrize("ref", ["main", "feature/x-1", "v1.2.3", "0" * 40, "名"])
def test_these_refs_are_accepted(ref: str) -> None:
    assert parse_request({**VALID, "ref": ref}).ref == ref


@pytest.mark.parametrize("character", [";", "|", "&", "$", "`", ">", "<", "\n", "(", "*"])
def test_a_shell_character_in_the_entrypoint_is_refused(character: str) -> None:
    expected = "control_character" if character == "\n" else "shell_character"
    assert refused(entrypoint=f"python train.py {character} id") == {"entrypoint": {expected}}
    assert refused(entrypoint=["python", f"train.py{character}id"]) == {"entrypoint": {expected}}


@pytest.mark.parametrize(
    ("entrypoint", "code"),
    [
        pytest.param("/bin/sh x", "outside_repository", id="an absolute program"),
        pytest.param("python /etc/x.py", "outside_repository", id="an absolute script"),
        pytest.param("python ../x.py", "outside_repository", id="a way up"),
        pytest.param("python a/../../x.py", "outside_repository", id="a way up inside"),
        pytest.param("python train.py --data=/etc", "outside_repository", id="an absolute path behind an option"),
        pytest.param("python ~/x.py", "outside_repository", id="a home folder"),
        pytest.param("--help", "not_a_program", id="an option"),
        pytest.param("python 'train.py", "unbalanced", id="an open quote"),
        pytest.param([], "missing", id="an empty list"),
        pytest.param(["python", 3], "not_a_command", id="a number in the list"),
        pytest.param({"python": "train.py"}, "not_a_command", id="an object"),
        pytest.param("python " + "a " * 64, "too_long", id="too many words"),
        pytest.param("python " + "a" * 5000, "too_long", id="too many characters"),
    ],
)
def test_these_entrypoints_are_refused(entrypoint: object, code: str) -> None:
    assert refused(entrypoint=entrypoint) == {"entrypoint": {code}}


@pytest.mark.parametrize(
    ("hyperparameters", "found"),
    [
        pytest.param({"a": {"b": 1}}, {"hyperparameters.a": {"nested"}}, id="nested"),
        pytest.param({"a": [1, 2]}, {"hyperparameters.a": {"nested"}}, id="a list"),
        pytest.param({"a": None}, {"hyperparameters.a": {"missing"}}, id="null"),
        pytest.param({"a": math.nan}, {"hyperparameters.a": {"not_finite"}}, id="nan"),
        pytest.param({"a": -math.inf}, {"hyperparameters.a": {"not_finite"}}, id="infinity"),
        pytest.param({"a": 2**63}, {"hyperparameters.a": {"too_large"}}, id="an integer over 64 bits"),
        pytest.param({"a": "b\x00"}, {"hyperparameters.a": {"control_character"}}, id="a NUL"),
        pytest.param({"a": "x" * 1_000_000}, {"hyperparameters": {"too_large"}}, id="a megabyte"),
        pytest.param('{"a": "' + "x" * 1_000_000 + '"}', {"hyperparameters": {"too_large"}}, id="a megabyte as text"),
        pytest.param({"-x": 1}, {"hyperparameters.-x": {"bad_name"}}, id="a name with a leading dash"),
        pytest.param({"a b": 1}, {"hyperparameters.a b": {"bad_name"}}, id="a name with a space"),
        pytest.param({3: 1}, {"hyperparameters.3": {"bad_name"}}, id="a name that is no string"),
        pytest.param("[1]", {"hyperparameters": {"not_an_object"}}, id="a JSON list"),
        pytest.param("[" * 50_000, {"hyperparameters": {"not_an_object"}}, id="JSON too deep to read"),
        pytest.param(
            {f"a{number}": 1 for number in range(MAX_HYPERPARAMETERS + 1)},
            {"hyperparameters": {"too_many"}},
            id="one too many",
        ),
    ],
)
def test_these_hyperparameters_are_refused(hyperparameters: object, found: dict[str, set[str]]) -> None:
    assert refused(hyperparameters=hyperparameters) == found


@pytest.mark.parametrize(
    "name", ["password", "db_password", "apiKey", "API_KEY", "hf_token", "token", "client-secret", "awsSecretKey"]
)
def test_a_name_that_looks_like_a_secret_is_refused(name: str) -> None:
    assert refused(hyperparameters={name: "x"}) == {f"hyperparameters.{name}": {"secret"}}


@pytest.mark.parametrize("name", ["max_tokens", "tokenizer", "pad_token", "num_keys", "secretary_problem"])
def test_a_name_that_only_resembles_a_secret_is_accepted(name: str) -> None:
    assert name in parse_request({**VALID, "hyperparameters": {name: 1}}).hyperparameters


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        pytest.param("max_runtime", "soon", "not_a_duration", id="a word"),
        pytest.param("max_runtime", "９０", "not_a_duration", id="seconds in digits of another width"),
        pytest.param("max_runtime", "２h", "not_a_duration", id="hours in digits of another width"),
        pytest.param("memory_mib", "４０９６", "not_a_number", id="memory in digits of another width"),
        pytest.param("checkpoint", "job-２0241110-001", "bad_name", id="a job's id in digits of another width"),
        pytest.param("max_runtime", 0, "out_of_range", id="nothing"),
        pytest.param("max_runtime", "31d", "out_of_range", id="over thirty days"),
        pytest.param("max_runtime", "999999999w", "not_a_duration", id="longer than can be kept"),
        pytest.param("queue_timeout", -5, "out_of_range", id="negative"),
        pytest.param("max_runtime", 1e308, "not_a_duration", id="more seconds than can be kept"),
        pytest.param("max_runtime", 10**400, "not_a_duration", id="more seconds than a float holds"),
        pytest.param("queue_timeout", math.inf, "not_a_duration", id="forever"),
        pytest.param("queue_timeout", True, "not_a_duration", id="a bool"),
        pytest.param("priority", MAX_PRIORITY + 1, "out_of_range", id="a priority over the range"),
        pytest.param("priority", -MAX_PRIORITY - 1, "out_of_range", id="a priority under the range"),
        pytest.param("memory_mib", 1, "out_of_range", id="no memory to speak of"),
        pytest.param("preemptible", "perhaps", "not_a_bool", id="perhaps"),
        pytest.param("name", "a\nb", "bad_name", id="a name with a line break"),
        pytest.param("name", "a" * 101, "bad_name", id="a name one too long"),
        pytest.param("name", 7, "not_text", id="a name that is a number"),
        pytest.param("image", "digits", "bad_name", id="an image without a tag"),
        pytest.param("image", "a:1;b", "bad_name", id="an image with a shell character"),
        pytest.param("pool", "local", "bad_name", id="a pool without a model"),
        pytest.param("datasets", ["../x"], "bad_name", id="a dataset that is a path"),
        pytest.param("datasets", ["a", "a"], "duplicate", id="a dataset twice"),
        pytest.param("datasets", [f"d{number}" for number in range(17)], "too_many", id="one dataset too many"),
        pytest.param("datasets", {"a": 1}, "not_a_list", id="datasets as an object"),
        pytest.param("checkpoint", "../job", "bad_name", id="a checkpoint that is no job"),
        pytest.param("owner", "a b", "bad_name", id="an owner with a space"),
        pytest.param("team", "x/y", "bad_name", id="a team with a slash"),
    ],
)
def test_these_values_are_refused(field: str, value: object, code: str) -> None:
    assert refused(**{field: value}) == {field: {code}}


@pytest.mark.parametrize("output_model", ["../x", "/etc/x", "s3://bucket/x", "a/../b", "", None])
def test_these_output_models_are_refused(output_model: object) -> None:
    assert "output_model" in refused(output_model=output_model)


def test_something_that_is_no_object_is_refused() -> None:
    with pytest.raises(RequestRefused, match="named fields"):
        parse_request([1, 2])  # type: ignore[arg-type]


def test_what_can_be_read_is_read_although_other_fields_are_wrong() -> None:
    read = read_request({**VALID, "pool": "nowhere", "gpus": 0, "nodes": 2, "datasets": ["../x", "a", "a"], "ref": 7})
    assert read.values["image"] == "digits:1"
    assert read.values["datasets"] == ("a",)
    assert not {"pool", "ref", "gpus", "nodes", "gpus_per_node"} & read.values.keys()
    assert len(read.problems) == 5


@pytest.mark.parametrize("field", ["pool", "gpus"])
def test_a_field_that_is_given_twice_with_different_values_counts_as_unread(field: str) -> None:
    other = {"pool": {"poolId": "other/declared"}, "gpus": {"gpus": 1, "gpuCount": 2}}[field]
    assert not {field, "gpus_per_node" if field == "gpus" else field} & read_request({**VALID, **other}).values.keys()


# --- payloads, arguments ---------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**63) + 1, 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), TEXT
)
SPECS = st.builds(
    JobSpec,
    name=st.sampled_from(["digits", "数字 1"]),
    pool=st.just("local/declared"),
    image=st.sampled_from(["digits:1", "nvcr.io/nvidia/pytorch:24.10-py3", "localhost:5000/a/b:c"]),
    repository=st.just("https://github.com/team/digits.git"),
    entrypoint=st.sampled_from([("python", "train.py"), ("./run.sh", "two words")]),
    output_model=st.just("digits"),
    ref=st.sampled_from(["main", "f" * 40]),
    datasets=st.sampled_from([(), ("digits",), ("a", "b")]),
    hyperparameters=st.dictionaries(st.from_regex(r"p[a-z0-9_.-]{0,9}", fullmatch=True), SCALARS, max_size=5),
    nodes=st.integers(1, 1024),
    gpus_per_node=st.integers(1, 64),
    memory_mib=st.none() | st.integers(16, 10**6),
    priority=st.integers(-1000, 1000),
    preemptible=st.booleans(),
    max_runtime=st.none() | st.timedeltas(timedelta(seconds=1), timedelta(days=30)),
    queue_timeout=st.none() | st.timedeltas(timedelta(seconds=1), timedelta(days=30)),
    checkpoint=st.sampled_from([None, "job-20241110-001"]),
    owner=st.sampled_from(["unknown", "a.b@example.com"]),
    team=st.just("vision"),
)


@given(SPECS)
def test_a_payload_reads_back_as_the_same_spec(spec: JobSpec) -> None:
    stored = json.loads(json.dumps(to_payload(spec)))
    assert from_payload(stored) == spec
    assert same_request(from_payload(stored), spec)


@given(SPECS)
def test_a_payload_sent_as_a_request_is_the_same_request(spec: JobSpec) -> None:
    assert parse_request(json.loads(json.dumps(to_payload(spec)))) == spec


@given(
    st.dictionaries(st.text(max_size=12), st.recursive(SCALARS | st.none(), lambda inner: st.lists(inner, max_size=3)))
)
def test_no_request_makes_the_parser_fail_otherwise(raw: dict[str, object]) -> None:
    for request in (raw, {**VALID, **raw}, {**VALID, "hyperparameters": raw}, dict.fromkeys(VALID, raw)):
        try:
            spec = parse_request(request)
        except RequestRefused:
            continue
        assert from_payload(json.loads(json.dumps(to_payload(spec)))) == spec


def test_requests_differ_in_the_kind_of_a_number_but_not_in_order() -> None:
    def spec(**hyperparameters: object) -> JobSpec:
        return parse_request({**VALID, "hyperparameters": hyperparameters, "datasets": ["a", "b"]})

    assert same_request(spec(a=1, b=2), spec(b=2, a=1))
    assert same_request(spec(), parse_request({**VALID, "datasets": ["b", "a"]}))
    assert not same_request(spec(a=1), spec(a=True))
    assert not same_request(spec(a=1), spec(a=1.0))
    assert not same_request(spec(), parse_request({**VALID, "datasets": ["a", "b"], "priority": 1}))


def test_hyperparameters_become_arguments_in_their_order() -> None:
    arguments = arguments_of(
        {"learning_rate": 0.1, "epochs": 3, "fast": True, "slow": False, "name": "a b", "shift": -1}
    )
    assert arguments == (
        *("--learning_rate", "0.1"),
        *("--epochs", "3"),
        *("--fast", "true"),
        *("--slow", "false"),
        *("--name", "a b"),
        "--shift=-1",
    )


@pytest.mark.parametrize("seconds", [1e308, 10**15, 10**400])
def test_seconds_that_no_duration_holds_are_refused_in_plain_words(seconds: float) -> None:
    (problem,) = [each for each in read_request({"max_runtime": seconds}).problems if each.field == "max_runtime"]
    assert problem.message.endswith("is longer than any duration that can be kept.")
