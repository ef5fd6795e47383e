"""Settings: where they are found, what they mean, and that every mistake is reported with its line, all at once."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel

from fermion import settings as module
from fermion.domain.pools import Budget, PoolPolicy, TeamQuota
from fermion.errors import SettingsInvalid
from fermion.settings import Configuration, Settings, load, locate

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root folder with an empty configuration and one lock file."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "fermion.yaml").write_text("")
    (tmp_path / "some.lock").write_text("")
    return tmp_path


def read(root: Path, text: str, **environ: str) -> Settings:
    (root / "config" / "fermion.yaml").write_text(text)
    return load(environ={"FERMION_ROOT": str(root), **environ})


def problems(root: Path, text: str, **environ: str) -> list[str]:
    """The problems of a configuration, one line each."""
    with pytest.raises(SettingsInvalid) as caught:
        read(root, text, **environ)
    lines = str(caught.value).splitlines()
    assert all(re.match(r"config/fermion\.yaml:\d+:\d+: \S", line) for line in lines), lines
    return [line.removeprefix("config/fermion.yaml:") for line in lines]


# --- where -----------------------------------------------------------------------------------------------------------


def test_the_root_is_named_by_the_environment(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = load(environ={"FERMION_ROOT": str(root)}, cwd=tmp_path_factory.mktemp("elsewhere"))
    assert settings.root == root
    assert settings.file == root / "config" / "fermion.yaml"


def test_the_root_is_found_upward_from_the_working_folder(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    assert load(environ={}, cwd=root / "a" / "b").root == root


def test_the_root_is_the_checkout_when_no_folder_above_is_one(tmp_path: Path) -> None:
    assert load(environ={"FERMION_STATE": str(tmp_path)}, cwd=tmp_path).root == CHECKOUT


def test_a_named_file_brings_its_root_with_it(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert load(root / "config" / "fermion.yaml", {}, cwd=tmp_path_factory.mktemp("elsewhere")).root == root


def test_a_root_without_configuration_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=re.escape(str(tmp_path))):
        load(environ={"FERMION_ROOT": str(tmp_path)})


def test_the_folders_are_found_even_when_the_configuration_is_wrong(root: Path) -> None:
    (root / "config" / "fermion.yaml").write_text("nonsense: [")
    assert locate(environ={"FERMION_ROOT": str(root)}) == (root, root / "run")


def test_nothing_is_read_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setenv("FERMION_ROOT", str(root))
    assert load().root == root


def test_everything_written_lies_in_the_state_folder_under_the_names_of_the_house(root: Path) -> None:
    settings = read(root, "")
    assert settings.state == root / "run"
    table = (CHECKOUT / "docs" / "house.md").read_text()
    for path in re.findall(r"^\| `run/([^`]+)`", table, re.MULTILINE):
        named = [
            *(settings.airflow_home, settings.postgres_dir, settings.secrets_dir, settings.supervisor_dir),
            *(settings.logs_dir, settings.work_dir, settings.models_dir, settings.reports_dir),
            *(settings.choices_file, settings.examples_dir, settings.router_dir, settings.demo_file),
        ]
        assert settings.state / path in named
    assert read(root, "", FERMION_STATE="/srv/state").models_dir == Path("/srv/state/models")


def test_the_database_is_the_environments_then_the_secrets_then_sqlite(root: Path) -> None:
    assert read(root, "").database_url == f"sqlite:///{root}/run/fermion.db"
    (root / "run" / "secrets").mkdir(parents=True)
    (root / "run" / "secrets" / "database_url").write_text("postgresql://from-file/fermion\n")
    assert read(root, "").database_url == "postgresql://from-file/fermion"
    assert read(root, "", FERMION_DATABASE_URL="postgresql://from-env/x").database_url == "postgresql://from-env/x"


def test_the_database_url_is_not_in_the_printed_settings(root: Path) -> None:
    assert "open-sesame" not in repr(read(root, "", FERMION_DATABASE_URL="postgresql://me:open-sesame@host/x"))


def test_airflow_is_where_the_environment_says_then_where_it_was_started_then_as_configured(root: Path) -> None:
    text = "airflow: {url: 'http://configured:1/'}"
    assert read(root, text).airflow_url == "http://configured:1"
    (root / "run" / "airflow").mkdir(parents=True)
    (root / "run" / "airflow" / "url").write_text("http://started:2\n")
    assert read(root, text).airflow_url == "http://started:2"
    assert read(root, text, FERMION_AIRFLOW_URL="http://said:3").airflow_url == "http://said:3"


# --- what ------------------------------------------------------------------------------------------------------------


def test_an_empty_file_means_the_defaults(root: Path) -> None:
    settings = read(root, "")
    assert (settings.environment, settings.clusters, settings.datasets) == ("embedded", {}, {})
    assert settings.models_uri == str(root / "run" / "models")
    assert settings.policy("any/pool").half_life == timedelta(days=7)


def test_a_section_that_is_all_comments_means_the_defaults(root: Path) -> None:
    assert read(root, "policies:\ndata:\n  roots:\nclusters:\n") == read(root, "")


def test_every_default_of_a_policy_is_that_of_the_domain(root: Path) -> None:
    policy = read(root, "").default_policy
    defaults = PoolPolicy(policy_version=policy.policy_version)
    assert policy == defaults


def test_a_pool_policy_changes_only_what_it_names(root: Path) -> None:
    settings = read(
        root,
        """
        clusters: {local: {kind: process}}
        policies:
          default: {max_gpus_per_job: 8, hang_factor: 10, max_runtime: 1h30m}
          pools:
            local/declared:
              max_gpus_per_job: 2
              max_runtime: null
              cohort: all
              teams: {vision: {nominal: 2, borrowing_limit: 1, lending_limit: 2}}
              user_budget: {gpu_hours: 10}
              team_budgets: {vision: {gpu_hours: 50, window: 30d}}
        """,
    )
    policy = settings.policy("local/declared")
    assert (policy.max_gpus_per_job, policy.hang_factor, policy.max_runtime, policy.cohort) == (2, 10, None, "all")
    assert policy.teams == {"vision": TeamQuota(nominal=2, borrowing_limit=1, lending_limit=2)}
    assert policy.user_budget == Budget(gpu_hours=10, window=timedelta(days=7))
    assert policy.team_budgets == {"vision": Budget(gpu_hours=50, window=timedelta(days=30))}
    assert settings.pool_policies == {"local/declared": policy}
    assert settings.policy("local/other") == settings.default_policy
    assert settings.default_policy.max_runtime == timedelta(minutes=90)


def test_the_policy_version_follows_the_content_unless_it_is_named(root: Path) -> None:
    def version(text: str) -> str:
        return read(root, f"policies: {{default: {{{text}}}}}").default_policy.policy_version

    assert version("") == version("hang_factor: 20")
    assert version("hang_factor: 21") != version("")
    assert version("hang_factor: 21, policy_version: spring") == "spring"


def test_variables_are_filled_in_and_paths_are_absolute(root: Path) -> None:
    settings = read(
        root,
        """
        images: {"some:1": {lock: some.lock}}
        datasets: {a: "${FERMION_STATE}/data/a", b: "s3://bucket/data/b/", c: data/c}
        data: {roots: ["${FERMION_STATE}/data", "s3://bucket/data", data]}
        code: {file_roots: ["${FERMION_ROOT}/git"], hosts: [github.com]}
        models: {uri: s3://models}
        """,
    )
    assert settings.images["some:1"].lock == root / "some.lock"
    assert settings.datasets == {
        "a": f"file://{root}/run/data/a",
        "b": "s3://bucket/data/b",
        "c": f"file://{root}/data/c",
    }
    assert settings.code.file_roots == (f"{root}/git",)
    assert settings.code.hosts == ("github.com",)
    assert settings.models_uri == "s3://models"


def test_a_job_spec_may_name_the_two_folders(root: Path) -> None:
    spec = read(root, "").expand_spec({"repository": "file://${FERMION_STATE}/x.git", "gpus": 1, "name": "${HOME}"})
    assert spec == {"repository": f"file://{root}/run/x.git", "gpus": 1, "name": "${HOME}"}


def test_a_folder_with_a_space_is_written_as_a_url_only_where_it_is_one(root: Path) -> None:
    text = 'datasets: {a: "${FERMION_STATE}/a"}\ndata: {roots: ["file://${FERMION_STATE}"]}\ncode: {file_roots: ["file://${FERMION_STATE}"]}'
    settings = read(root, text, FERMION_STATE="/srv/my state")
    assert settings.datasets == {"a": "file:///srv/my%20state/a"}
    assert settings.data.roots == settings.code.file_roots == ("/srv/my state",)
    assert settings.models_uri == "/srv/my state/models"
    spec = settings.expand_spec({"repository": "file://${FERMION_STATE}/x.git", "note": "${FERMION_STATE}"})
    assert spec == {"repository": "file:///srv/my%20state/x.git", "note": "/srv/my state"}


def test_cache_sizes_are_also_said_in_bytes(root: Path) -> None:
    caches = read(root, "caches: {images_gib: 0.5, code_gib: null, models_gib: 2}").caches
    assert caches.models_bytes == 2**31
    assert (caches.images_bytes, caches.datasets_bytes, caches.code_bytes) == (2**29, 50 * 2**30, None)


def test_every_kind_of_cluster_is_accepted(root: Path) -> None:
    settings = read(
        root,
        """
        clusters:
          local: {kind: process, declared_slots: 2}
          box: {kind: docker, host: "unix:///var/run/docker.sock"}
          big: {kind: kubernetes, connection: big, admission: kueue}
          many: {kind: karmada, connection: fleet}
        """,
    )
    assert [cluster.kind for cluster in settings.clusters.values()] == ["process", "docker", "kubernetes", "karmada"]


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_all_problems_come_at_once_in_the_order_of_the_file(root: Path) -> None:
    text = """\
enviroment: embedded
clusters:
  local:
    kind: process
    declared_slots: -1
    declared_slot: 4
images:
  some:1:
    lock: missing.lock
policies:
  pools:
    locl/declared:
      teams:
        vision: {nominal: 2, lending_limit: 3}
      half_life: 7
datasets:
  digits: /etc
  digits: /srv
"""
    found = problems(root, text)
    assert [line.split(": ")[0] for line in found] == [
        *("1:1", "5:21", "6:5", "9:11", "12:5", "14:45", "15:18", "17:11", "18:3")
    ]
    for line, words in zip(
        found,
        [
            "enviroment: there is no such setting; did you mean environment?",
            "clusters.local.declared_slots: it should be greater than or equal to 0, not -1. Slots of the pool",
            "clusters.local.declared_slot: there is no such setting; did you mean declared_slots?",
            "images.some:1.lock: there is no file",
            "policies.pools.locl/declared: cluster 'locl' is not under clusters; did you mean local/declared?",
            "lending_limit: 3 is more than the team's nominal 2",
            "half_life: 7 has no unit; write a number and a unit",
            "datasets.digits: /etc lies outside of data.roots",
            "datasets.digits: stands in line 17 already",
        ],
        strict=True,
    ):
        assert words in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "clusters: {a: {kind: magic}}", "1:22: clusters.a.kind: a cluster's kind must be one of", id="kind"
        ),
        pytest.param("clusters: {a: {}}", "1:12: clusters.a.kind: a cluster's kind", id="no kind"),
        pytest.param("clusters:\n  - a\n", "2:3: clusters: it should be a valid dictionary. Cluster name", id="a list"),
        pytest.param(
            "clusters: {A_b: {kind: process}}", "1:12: clusters.A_b: 'A_b' is not a cluster's name", id="cluster name"
        ),
        pytest.param("- a\n- b\n", "1:1: file: it should be a valid dictionary", id="not a mapping at all"),
        pytest.param("words", "1:1: file: it should be a valid dictionary", id="words"),
        pytest.param(
            "clusters: {k: {kind: karmada}}", "1:12: clusters.k.connection: is missing. The Airflow", id="missing"
        ),
        pytest.param(
            "clusters: {a: {kind: kubernetes, declared_slots: 1}}",
            "1:34: clusters.a.declared_slots: there",
            id="other kind's",
        ),
        pytest.param(
            'defaults: {memory_mib: "4"}', "1:24: defaults.memory_mib: it should be a valid integer", id="text"
        ),
        pytest.param(
            "defaults: {memory_mib: 1.5}", "1:24: defaults.memory_mib: it should be a valid integer", id="half"
        ),
        pytest.param(
            "policies: {default: {preemption: 1}}", "1:34: policies.default.preemption: it should be", id="bool"
        ),
        pytest.param("sync: {interval: 0s}", "1:18: sync.interval: it should be greater than", id="no time at all"),
        pytest.param(
            "sync: {interval: soon}", "1:18: sync.interval: 'soon' is not a duration; write", id="no duration"
        ),
        pytest.param(
            "caches: {images_gib: .inf}", "1:22: caches.images_gib: it should be a finite number", id="infinite"
        ),
        pytest.param(
            "policies: {pools: {declared: {}}}",
            "1:20: policies.pools.declared: 'declared' is not a pool's id",
            id="pool id",
        ),
        pytest.param(
            "models: {uri: 'gs://x'}", "1:15: models.uri: 'gs://x' is neither a folder nor s3://", id="scheme"
        ),
        pytest.param(
            "models: {uri: '${HOME}/x'}", "1:15: models.uri: ${HOME} is not known; only FERMION_ROOT", id="variable"
        ),
        pytest.param(
            "code: {hosts: ['https://github.com/x']}",
            "1:16: code.hosts.0: 'https://github.com/x' is not a host",
            id="host",
        ),
        pytest.param(
            "airflow: {url: 'http://me:pw@host'}",
            "1:16: airflow.url: 'http://me:pw@host' is not a URL",
            id="a password in a url",
        ),
        pytest.param(
            "datasets: {a: 's3://bucket/c'}",
            "1:15: datasets.a: s3://bucket/c lies outside of data.roots",
            id="no roots",
        ),
        pytest.param(
            "datasets: {a: /data/../etc}\ndata: {roots: [/data]}",
            "1:15: datasets.a: /data/../etc lies outside",
            id="a way up",
        ),
        pytest.param(
            "datasets: {a: /database}\ndata: {roots: [/data]}",
            "1:15: datasets.a: /database lies outside",
            id="a longer name",
        ),
        pytest.param("a: {b: [", "1:9: this is not YAML", id="cut short"),
        pytest.param("a: \tb: c", "1:", id="a tab"),
    ],
)
def test_a_mistake_is_answered_with_its_place_and_what_to_do(root: Path, text: str, expected: str) -> None:
    found = problems(root, text)
    assert any(line.startswith(expected) for line in found), found


def test_production_refuses_what_isolates_nothing(root: Path) -> None:
    text = "environment: production\nclusters:\n  local: {kind: process}\ncode: {file_roots: [/srv]}\n"
    found = problems(root, text)
    assert [line.split(": ")[1] for line in found] == ["environment", "clusters.local.kind", "code.file_roots"]
    ready = "environment: production\nclusters:\n  box: {kind: docker}\n"
    assert read(root, ready, FERMION_DATABASE_URL="postgresql://x/y").environment == "production"


# --- the shipped file, the page ----------------------------------------------------------------------------------------


def test_the_shipped_configuration_is_sound(tmp_path: Path) -> None:
    settings = load(environ={"FERMION_ROOT": str(CHECKOUT), "FERMION_STATE": str(tmp_path)})
    assert settings.environment == "embedded"
    assert [(name, cluster.kind) for name, cluster in settings.clusters.items()] == [("local", "process")]
    assert set(settings.images) == {"digits:1", "digits-server:1", "python:3"}
    assert settings.datasets == {"digits": f"file://{tmp_path}/examples/datasets/digits"}


def test_the_shipped_policy_says_the_defaults_and_nothing_else(tmp_path: Path) -> None:
    shipped = load(environ={"FERMION_ROOT": str(CHECKOUT), "FERMION_STATE": str(tmp_path)}).default_policy
    assert shipped == PoolPolicy(policy_version=shipped.policy_version)


def every_setting(model: type[BaseModel] = Configuration, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, meaning) of each setting; names that people choose stand as <…>."""
    for name, field in model.model_fields.items():
        yield prefix + name, " ".join((field.description or "").split())
        for inner in inner_models(field.annotation):
            yield from every_setting(inner[1], f"{prefix}{name}{inner[0]}.")


def inner_models(kind: typing.Any) -> Iterator[tuple[str, type[BaseModel]]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield "", kind
        return
    for inner in typing.get_args(kind):
        keyed = ".<name>" if typing.get_origin(kind) is dict else ""
        yield from ((keyed + more, model) for more, model in inner_models(inner))


def test_every_setting_has_a_meaning_and_stands_on_its_page() -> None:
    page = (CHECKOUT / "docs" / "configuration.md").read_text()
    settings = list(every_setting())
    assert len(settings) > 60
    for name, meaning in settings:
        assert meaning, f"{name} has no docstring"
        assert f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |" in page, (
            f"docs/configuration.md lacks {name} as it is"
        )


def test_the_settings_are_the_only_reader_of_the_platforms_variables() -> None:
    package = Path(module.__file__).parent
    reads = re.compile(r"(os\.environ(\.get\(|\[)|getenv\()\s*[\"']FERMION_(ROOT|STATE|DATABASE_URL|AIRFLOW_URL)")
    readers = [file.name for file in package.rglob("*.py") if reads.search(file.read_text())]
    assert readers == []


def test_looks_from_prometheus_need_one(root: Path) -> None:
    (found,) = problems(root, "metrics: {looks: prometheus}\n")
    assert "metrics.looks: no Prometheus is configured" in found
    assert read(root, "metrics: {looks: prometheus, prometheus: 'http://127.0.0.1:9090'}\n").metrics.labels == {}
    wrong = problems(root, "metrics: {prometheus: nowhere, labels: {a-b: c}, scrape_port: 80}\n")
    assert [each.split(": ")[1] for each in wrong] == [
        "metrics.prometheus",
        "metrics.labels.a-b",
        "metrics.scrape_port",
    ]
