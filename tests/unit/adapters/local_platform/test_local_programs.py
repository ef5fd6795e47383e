"""What the supervisor is told to run, and in which environment."""

from __future__ import annotations

import configparser
from importlib.util import find_spec
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from fermion.adapters.local_platform.addresses import Addresses
from fermion.adapters.local_platform.keys import Keys, keep_keys
from fermion.adapters.local_platform.layout import Layout
from fermion.adapters.local_platform.postgres import Account, EmbeddedPostgres
from fermion.adapters.local_platform.programs import AIRFLOW, environment, programs, render

ROOT = Path(__file__).parents[4]
ADDRESSES = Addresses(http=18080, postgres=25999)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path / "with space", state=tmp_path / "with space" / "100%")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    (tmp_path / "keys").mkdir()
    return keep_keys(tmp_path / "keys")


@pytest.fixture
def postgres(layout: Layout, keys: Keys) -> EmbeddedPostgres:
    return EmbeddedPostgres(data=layout.postgres, keys=keys, port=ADDRESSES.postgres)


def rendered(
    layout: Layout, postgres: EmbeddedPostgres, account: Account | None = None
) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"))
    parser.read_string(render(layout, programs(layout, postgres, account), socket=layout.supervisor / "s.sock"))
    return parser


def test_postgres_the_router_and_the_four_components_are_supervised(layout: Layout, postgres: EmbeddedPostgres) -> None:
    sections = [name for name in rendered(layout, postgres).sections() if name.startswith("program:")]

    assert sections == ["program:postgres", "program:router", *(f"program:{name}" for name in AIRFLOW)]


def test_postgres_and_the_router_start_with_the_supervisor_and_stop_last(
    layout: Layout, postgres: EmbeddedPostgres
) -> None:
    parser = rendered(layout, postgres)

    starts = {name: parser[f"program:{name}"]["autostart"] for name in ("postgres", "router", *AIRFLOW)}
    assert starts == {"postgres": "true", "router": "true", **dict.fromkeys(AIRFLOW, "false")}
    order = {name: int(parser[f"program:{name}"]["priority"]) for name in starts}
    assert sorted(order, key=lambda name: order[name])[:2] == ["postgres", "router"]


def test_the_router_is_the_supervisors_own_child_with_a_log_of_its_own(
    layout: Layout, postgres: EmbeddedPostgres
) -> None:
    """A wrapper between them would be what the supervisor sees and signals."""
    section = rendered(layout, postgres)["program:router"]

    program = section["command"].split('"')[1]
    assert Path(program).name == "envoy"
    assert Path(program).read_bytes()[:4] == b"\x7fELF"
    assert f'"{layout.router / "bootstrap.json"}"' in section["command"].replace("%%", "%")
    assert section["stdout_logfile"].replace("%%", "%") == str(layout.logs / "router.log")


def test_paths_with_spaces_and_percent_signs_arrive_whole(layout: Layout, postgres: EmbeddedPostgres) -> None:
    section = rendered(layout, postgres)["program:postgres"]

    assert section["directory"].replace("%%", "%") == str(layout.postgres)
    assert f'"{layout.postgres}"' in section["command"].replace("%%", "%")


def test_there_is_no_network_door_to_the_supervisor(layout: Layout, postgres: EmbeddedPostgres) -> None:
    parser = rendered(layout, postgres)

    assert "inet_http_server" not in parser.sections()
    assert parser["unix_http_server"]["chmod"] == "0700"


def test_the_supervisor_file_holds_no_secret(layout: Layout, keys: Keys, postgres: EmbeddedPostgres) -> None:
    text = render(layout, programs(layout, postgres, None), socket=layout.supervisor / "s.sock")

    for secret in (keys.postgres, keys.airflow_db, keys.fermion_db, keys.fernet, keys.jwt, keys.api):
        assert secret not in text


def test_a_borrowed_account_is_used_for_postgres_alone(layout: Layout, postgres: EmbeddedPostgres) -> None:
    parser = rendered(layout, postgres, Account(name="nobody", uid=65534, gid=65534))

    assert {name for name in parser.sections() if "user" in parser[name] and name.startswith("program:")} == {
        "program:postgres"
    }


def test_the_callers_airflow_and_python_settings_do_not_reach_the_programs(
    layout: Layout, keys: Keys, postgres: EmbeddedPostgres
) -> None:
    caller = {
        "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
        "AIRFLOW_HOME": "/elsewhere",
        "PYTHONPATH": "/elsewhere",
        "FERMION_WORKLOAD": "job-1",
        "AIRFLOW_CONN_MY_GIT": "https://example.org",
        "LANG": "C.UTF-8",
    }

    seen = environment(layout, keys, ADDRESSES, postgres, caller=caller)

    assert not {"AIRFLOW__CORE__UNIT_TEST_MODE", "PYTHONPATH", "FERMION_WORKLOAD"} & seen.keys()
    assert seen["AIRFLOW_HOME"] == str(layout.airflow_home)
    assert (seen["AIRFLOW_CONN_MY_GIT"], seen["LANG"]) == ("https://example.org", "C.UTF-8")


def test_loopback_never_goes_through_the_callers_proxy(layout: Layout, keys: Keys, postgres: EmbeddedPostgres) -> None:
    seen = environment(layout, keys, ADDRESSES, postgres, caller={"HTTP_PROXY": "http://proxy", "no_proxy": "intranet"})

    assert seen["no_proxy"] == seen["NO_PROXY"] == "intranet,127.0.0.1,localhost"


def test_the_addresses_reach_airflow(layout: Layout, keys: Keys, postgres: EmbeddedPostgres) -> None:
    seen = environment(layout, keys, ADDRESSES, postgres, caller={})

    assert seen["AIRFLOW__API__PORT"] == "18080"
    assert seen["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:18080/execution/"
    assert seen["AIRFLOW_CONN_FERMION_DB"].endswith("@127.0.0.1:25999/fermion")


# --- config/airflow.cfg ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def airflow_cfg() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "config" / "airflow.cfg")
    return parser


def test_every_option_of_the_file_is_one_that_the_installed_airflow_knows(
    airflow_cfg: configparser.RawConfigParser,
) -> None:
    """Airflow itself reads past a misspelt option without a word."""
    spec = find_spec("airflow")
    assert spec is not None
    assert spec.origin is not None
    known = YAML(typ="safe").load(Path(spec.origin).parent / "config_templates" / "config.yml")

    unknown = [
        f"[{section}] {option}"
        for section in airflow_cfg.sections()
        for option in airflow_cfg[section]
        if option not in known.get(section, {}).get("options", {})
    ]

    assert unknown == []


@pytest.mark.parametrize(
    ("section", "option", "at_most"),
    [
        ("scheduler", "task_instance_heartbeat_timeout", 30),
        ("scheduler", "orphaned_tasks_check_interval", 15),
        ("scheduler", "scheduler_health_check_threshold", 15),
        ("triggerer", "triggerer_health_check_threshold", 15),
        ("dag_processor", "health_check_threshold", 30),
    ],
)
def test_a_dead_part_is_noticed_in_time(
    airflow_cfg: configparser.RawConfigParser, section: str, option: str, at_most: float
) -> None:
    assert airflow_cfg.getfloat(section, option) <= at_most


def test_the_file_holds_no_secret_and_no_address(airflow_cfg: configparser.RawConfigParser) -> None:
    generated = {"fernet_key", "jwt_secret", "secret_key", "sql_alchemy_conn", "port", "base_url"}

    assert not generated & {option for section in airflow_cfg.sections() for option in airflow_cfg[section]}


def test_the_plugin_loader_reads_the_thin_file_only() -> None:
    lines = (ROOT / "plugins" / ".airflowignore").read_text().splitlines()

    assert "fermion_airflow/" in lines
    assert {path.name for path in (ROOT / "plugins").glob("*.py")} <= {"fermion_plugin.py"}
