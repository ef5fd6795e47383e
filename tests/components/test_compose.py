"""docker-compose.yml for real: built, up, a model trained, down, up, nothing lost; killed in parts; served; wrong secrets.

One platform; the tests go through its life in order.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "compose")]

import engine as engines  # noqa: E402
import missing  # noqa: E402
from composed import COMPONENTS, RESTART_WITHIN_S, ROOT, SERVICES, STATE, Composed, wait_until  # noqa: E402

# The first run builds compose, and fetches the packages of the images.
pytestmark = [pytest.mark.components, pytest.mark.timeout(1500)]

DIGITS = "include/examples/digits/job.yaml"
SERVICE = "include/examples/digits/service.yaml"
LIVING = ("scheduler", "triggerer", "router")
"""Whose processes and network are the machine's."""

READY = "/digits/v2/models/digits/ready"


@dataclass
class Life:
    """What the tests hand on to those after them."""

    platform: Composed
    seen: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    try:
        with engines.running() as engine:
            platform = Composed(engine, tmp_path_factory.mktemp("compose"))
            platform.forget()
            platform.build()
            try:
                yield Life(platform)
            finally:
                platform.forget()
    except engines.EngineMissing as error:
        missing.skip(str(error))
    assert (engines.processes(engine.folder), engines.mounts(engine.folder), engines.rules()) == ([], [], [])


@pytest.fixture
def platform(life: Life) -> Composed:
    return life.platform


# --- before it starts ---


def test_the_configuration_names_the_secrets_and_holds_none(platform: Composed) -> None:
    shown = platform.compose("config")

    assert str(platform.secrets / "fernet_key") in shown
    for name, content in secrets(platform).items():
        assert content not in shown, f"{name} is in `docker compose config`"


def test_the_image_holds_the_platform_and_nothing_of_the_checkout_beside_it(platform: Composed) -> None:
    listed = platform.engine.docker("run", "--rm", "--entrypoint", "ls", "fermion:test", "-A", "/opt/fermion").split()

    assert sorted(listed) == ["config", "dags", "include", "plugins", "requirements.lock"]


def test_a_component_is_called_healthy_when_it_answers_and_not_before(platform: Composed) -> None:
    platform.compose("up", "--detach", within_s=240)
    early = {"api-server": 0}
    late: dict[str, bool] = {}
    until = time.monotonic() + 180
    while len(late) < len(COMPONENTS) and time.monotonic() < until:
        serving = platform.is_serving()
        for service in COMPONENTS:
            health = platform.health(service)
            if health == "healthy" and service not in late:
                late[service] = platform.passes_its_check(service) and platform.is_serving()
        early["api-server"] += not serving and platform.health("api-server") == "starting"
        time.sleep(0.2)

    assert late == dict.fromkeys(COMPONENTS, True)
    assert early["api-server"], "it was never seen before it answered"
    platform.up()  # says that all is well, and changes nothing


def secrets(platform: Composed) -> dict[str, str]:
    """Every secret, and each password within."""
    found = {file.name: file.read_text() for file in platform.secrets.iterdir()}
    return {**found, **json.loads(found.pop("passwords.json"))}


def test_nothing_runs_as_root(platform: Composed) -> None:
    for service in SERVICES:
        status = Path(f"/proc/{platform.pid(service)}/status").read_text(encoding="utf-8")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert "0" not in fields["Uid"].split(), f"{service} runs as root"
        assert int(fields["CapEff"], 16) == 0, f"{service} has capabilities"
        assert fields["NoNewPrivs"] == "1", f"{service} may gain privileges"


def test_no_secret_is_in_an_image_or_in_what_the_engine_shows_of_a_container(platform: Composed) -> None:
    docker = platform.engine.docker
    shown = {f"the container of {service}": json.dumps(platform.container(service)) for service in SERVICES}
    for image in ("fermion:test", "fermion-postgres:test"):
        shown[image] = docker("history", "--no-trunc", image) + docker("inspect", image)

    for where, text in shown.items():
        for name, content in secrets(platform).items():
            assert content not in text, f"{name} is in {where}"


# --- its life ---


def test_a_real_model_is_trained(life: Life, platform: Composed) -> None:
    platform.compose("exec", "-T", "scheduler", "python", "include/examples/make_repository.py", f"{STATE}/examples")
    job = platform.fermion("train", "--spec", DIGITS, "--wait", within_s=240)

    assert (job["status"], job["attempt"]) == ("completed", 1), job["message"]
    assert job["output_model_path"] == "digits/1"
    life.seen["first"] = job["id"]
    check_all_is_well(platform, models=1)


def test_after_down_and_up_nothing_is_lost(life: Life, platform: Composed) -> None:
    before = everything(platform, life.seen["first"])
    assert all(before.values()), "there was something to lose"
    assert before["runs"]["train_model"] == {life.seen["first"]: "success"}
    platform.down()
    assert platform.engine.docker("ps", "--all", "--quiet").split() == []
    platform.up()

    assert everything(platform, life.seen["first"]) == before
    check_all_is_well(platform, models=1)


def test_a_second_training_works_on_what_was_kept(platform: Composed) -> None:
    job = platform.fermion("train", "--spec", DIGITS, "--wait", within_s=240)

    assert (job["status"], job["output_model_path"]) == ("completed", "digits/2"), job["message"]
    assert job["id"].endswith("-002") or job["id"].endswith("-001"), "ids go on where they were, or it is another day"
    check_all_is_well(platform, models=2)


def test_the_back_up_of_the_manual_holds_both_databases_and_the_models(platform: Composed) -> None:
    dump = "PGPASSWORD=$(cat /run/secrets/postgres_password) pg_dumpall -h 127.0.0.1 -U postgres"
    dumped = platform.compose("exec", "-T", "postgres", "sh", "-c", dump)
    pack = f"tar -C {STATE} -czf - models reports examples | tar -tzf -"
    packed = platform.compose("run", "--rm", "--no-deps", "-T", "--entrypoint", "sh", "migrate", "-c", pack)

    assert all(f"CREATE DATABASE {name} " in dumped for name in ("airflow", "fermion"))
    assert "models/digits/2/" in packed


def everything(platform: Composed, job_id: str) -> dict[str, Any]:
    """What may not change by a restart: the job, the model's and the report's files, the ledger, the run in Airflow."""
    return {
        "job": platform.fermion("job", job_id),
        "ledger": platform.fermion("ledger")["entries"],
        "models": platform.files("models"),
        "reports": platform.files("reports"),
        "runs": {"train_model": platform.runs("train_model")},
    }


def check_all_is_well(platform: Composed, *, models: int) -> None:
    """Models and their checksums, reports, the ledger and the doctor."""
    published = platform.fermion("models", "digits", "--verify")
    assert len(published) == models
    assert all(not version["problems"] for version in published), published
    doctor = wait_until(lambda: (said := platform.fermion("doctor"))["ok"] and said, "a healthy doctor")
    assert (doctor["open_leases"], doctor["leaked_gpu_seconds"], doctor["orphans"]) == (0, 0, [])


# --- killed in parts ---


def test_a_training_does_not_notice_that_everything_around_it_crashes(platform: Composed) -> None:
    around = ("postgres", "api-server", "dag-processor", "triggerer", "router")
    job_id = platform.fermion("train", "--spec", "-", spec=sleeper(seconds=25))["id"]
    wait_for_epoch(platform, job_id)
    platform.kill(*around)
    for service in around:
        platform.wait_for_restart(service)
    job = wait_for_end(platform, job_id)

    assert (job["status"], job["attempt"]) == ("completed", 1), job["message"]
    check_all_is_well(platform, models=2)


def test_a_training_does_not_notice_that_the_scheduler_crashes(platform: Composed) -> None:
    job_id = platform.fermion("train", "--spec", "-", spec=sleeper(seconds=20))["id"]
    wait_for_epoch(platform, job_id)
    container, killed = platform.pid("scheduler"), platform.program("scheduler")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: platform.program("scheduler") not in {container, killed}, "the scheduler started again")
    job = wait_for_end(platform, job_id)

    assert (job["status"], job["attempt"]) == ("completed", 1), job["message"]
    assert platform.pid("scheduler") == container
    check_all_is_well(platform, models=2)


def test_a_training_whose_container_crashes_goes_on_from_its_checkpoint(platform: Composed) -> None:
    job_id = platform.fermion("train", "--spec", "-", spec=sleeper(seconds=12))["id"]
    wait_for_epoch(platform, job_id)
    triggerer = platform.pid("triggerer")
    platform.kill("scheduler")
    platform.wait_for_restart("scheduler")
    job = wait_for_end(platform, job_id)

    assert (job["status"], job["attempt"]) == ("completed", 2), job["message"]
    assert platform.pid("triggerer") == triggerer, "the scheduler took the triggerer along"
    check_all_is_well(platform, models=2)


def sleeper(*, seconds: int) -> dict[str, object]:
    return {
        "name": "sleeper",
        "pool": "local/declared",
        "image": "python:3",
        "repository": f"file://{STATE}/examples/sleeper.git",
        "entrypoint": "python sleep.py",
        "hyperparameters": {"seconds": seconds, "epochs": seconds},
        "memory_mib": 256,
        "output_model": "sleeper",
    }


def wait_for_epoch(platform: Composed, job_id: str) -> None:
    wait_until(lambda: (platform.fermion("job", job_id)["epoch"] or 0) >= 2, f"the second epoch of {job_id}")


def wait_for_end(platform: Composed, job_id: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        job: dict[str, Any] = platform.fermion("job", job_id)
        return job if job["status"] in {"completed", "failed"} else None

    found: dict[str, Any] = wait_until(ended, f"the end of {job_id}", within_s=150)
    return found


# --- serving ---


def test_a_model_is_served_on_the_published_port(platform: Composed) -> None:
    deployed = platform.fermion("deploy", "--spec", SERVICE, "--wait", "--timeout", "300", within_s=330)

    assert (deployed["serves"], deployed["model_path"]) == (True, "digits/2"), deployed["message"]
    assert platform.fermion("service", "digits")["endpoint"] == f"http://127.0.0.1:{platform.router_port}/digits"
    pixels, digits = samples(100)
    assert [read == digit for read, digit in zip(predicted(platform, pixels), digits, strict=True)].count(False) < 10
    assert platform.ask("/nobody").status_code == 404


def test_of_their_network_only_the_services_port_is_published(platform: Composed) -> None:
    place = {"HostIp": "127.0.0.1", "HostPort": str(platform.router_port)}

    assert platform.container("machine")["NetworkSettings"]["Ports"] == {f"{platform.router_port}/tcp": [place]}
    assert [name for name in LIVING if platform.container(name)["NetworkSettings"]["Ports"]] == []
    assert ("0.0.0.0", platform.router_port) in platform.listening("machine")
    networks = {os.readlink(f"/proc/{platform.pid(name)}/ns/net") for name in (*LIVING, "machine")}
    assert len(networks) == 1


def test_the_router_is_given_no_secret(platform: Composed) -> None:
    held = Path(f"/proc/{platform.pid('router')}/environ").read_bytes().decode()

    assert [name for name, content in secrets(platform).items() if content in held] == []
    assert [each for each in platform.container("router")["Mounts"] if "/run/secrets" in each["Destination"]] == []


def test_a_service_does_not_notice_that_scheduler_and_triggerer_crash(platform: Composed) -> None:
    service = platform.fermion("service", "digits")
    killed = {name: platform.program(name) for name in ("scheduler", "triggerer")}
    for pid in killed.values():
        os.kill(pid, signal.SIGKILL)
    seen = asked_until(
        platform, lambda: all(platform.program(name) not in {pid, platform.pid(name)} for name, pid in killed.items())
    )
    for name in killed:
        platform.wait_for_check(name, passes=True)

    assert set(seen) == {200}, seen
    assert instances(platform) == [(each["name"], each["starts"]) for each in service["instances"]]


def test_a_router_that_restarts_goes_on_from_what_it_was_told_last(platform: Composed) -> None:
    before = instances(platform)
    platform.compose("restart", "router")

    wait_until(lambda: is_served(platform), "the service after the router's restart", within_s=20)
    assert instances(platform) == before
    kept = platform.compose("exec", "-T", "router", "cat", f"{STATE}/logs/router.log").splitlines()
    printed = platform.compose("logs", "--no-log-prefix", "router").splitlines()
    assert kept, "Envoy has a word at every start"
    assert kept[-1] in printed, "the file is older than the container"


def test_a_router_that_lost_everything_is_told_again_from_the_database(platform: Composed) -> None:
    platform.compose("stop", "router")
    platform.compose("exec", "-T", "scheduler", "rm", "-r", f"{STATE}/router")
    platform.compose("start", "router")

    wait_until(lambda: is_served(platform), "the service that a new router was told of")


def test_a_service_whose_containers_restart_gets_new_servers(platform: Composed) -> None:
    before = platform.fermion("service", "digits")
    platform.compose("restart", "scheduler", "triggerer")

    check_it_serves_again(platform, before)


def test_after_down_and_up_services_are_there_again(platform: Composed) -> None:
    before = platform.fermion("service", "digits")
    platform.down()
    platform.up()

    check_it_serves_again(platform, before)


def test_a_machine_that_restarts_takes_its_containers_along(platform: Composed) -> None:
    before = platform.fermion("service", "digits")
    platform.compose("restart", "machine")
    for service in LIVING:
        platform.wait_for_check(service, passes=True)

    check_it_serves_again(platform, before)


def test_a_service_that_is_closed_leaves_nothing(platform: Composed) -> None:
    platform.fermion("close", "digits")

    wait_until(lambda: platform.ask("/digits").status_code == 404, "the service's end", within_s=RESTART_WITHIN_S)
    check_all_is_well(platform, models=2)


def check_it_serves_again(platform: Composed, before: dict[str, Any]) -> None:
    """Another server, the same service and revision; one GPU is held, by the new one."""
    wait_until(lambda: is_served(platform), "the service with another server", within_s=RESTART_WITHIN_S)
    after = platform.fermion("service", "digits")
    assert [each["name"] for each in after["instances"]] != [each["name"] for each in before["instances"]]
    kept = ("id", "model_path", "endpoint", "weights", "revisions")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    doctor = wait_until(lambda: (said := platform.fermion("doctor"))["ok"] and said, "a healthy doctor")
    assert (doctor["open_leases"], doctor["leaked_gpu_seconds"], doctor["orphans"]) == (1, 0, [])


def is_served(platform: Composed) -> bool:
    return platform.ask(READY).status_code == 200


def asked_until(platform: Composed, is_true: Callable[[], bool]) -> Counter[int]:
    """Answers to a client that asks until something comes true; 0 stands for none."""
    seen: Counter[int] = Counter()

    def ask() -> bool:
        try:
            seen[platform.ask(READY).status_code] += 1
        except httpx.HTTPError:
            seen[0] += 1
        return is_true()

    wait_until(ask, "what the clients wait for")
    return seen


def instances(platform: Composed) -> list[tuple[str, int]]:
    """The service's model servers, and how often each was started."""
    return [(each["name"], each["starts"]) for each in platform.fermion("service", "digits")["instances"]]


def predicted(platform: Composed, pixels: list[list[float]]) -> list[int]:
    """What the service reads in these images, asked by a client on this machine."""
    given = {"name": "pixels", "shape": [len(pixels), 64], "datatype": "FP64", "data": pixels}
    answer = platform.ask("/digits/v2/models/digits/infer", {"inputs": [given]})
    assert answer.status_code == 200, answer.text
    found: list[int] = next(each["data"] for each in answer.json()["outputs"] if each["name"] == "digit")
    return found


def samples(count: int) -> tuple[list[list[float]], list[int]]:
    """Images of the example and what they show."""
    with gzip.open(ROOT / "include/examples/digits/data/digits.csv.gz", "rt", encoding="utf-8") as file:
        rows = [[int(value) for value in row] for row in list(csv.reader(file))[1 : count + 1]]
    return [[value / 16 for value in row[:-1]] for row in rows], [row[-1] for row in rows]


# --- what is wrong is said ---


def test_a_component_that_hangs_is_not_called_healthy(platform: Composed) -> None:
    hung = ("scheduler", "dag-processor", "triggerer", "router")
    assert all(platform.passes_its_check(service) for service in (*COMPONENTS, "router"))
    pids = [platform.program(service) for service in hung]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        for service in hung:
            platform.wait_for_check(service, passes=False)
        assert platform.passes_its_check("api-server")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    for service in hung:
        platform.wait_for_check(service, passes=True)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("fermion_db_password", "0123456789ab", "fermion_db_password is refused by Postgres at postgres"),
        ("airflow_db_password", "", "airflow_db_password is empty"),
        ("airflow_db_password", "p@ss:word", "airflow_db_password has characters other than"),
        ("fernet_key", "short", "fernet_key is not 32 bytes"),
        ("jwt_secret", "short", "jwt_secret has 5 characters"),
        ("passwords.json", '{"admin": "x"}', "passwords.json has no password for op, user, viewer"),
        ("passwords.json", "admin:x", "passwords.json is not a JSON object"),
    ],
)
def test_a_wrong_secret_is_named_with_what_to_do(platform: Composed, name: str, content: str, said: str) -> None:
    folder = platform.wrong(name, content)
    done = platform.call("run", "--rm", "--no-deps", "-T", "migrate", FERMION_SECRETS=folder)

    assert done.returncode != 0
    assert f"fermion: the secret {said}" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert not content or content not in done.stderr + done.stdout


def test_a_secret_that_is_not_there_is_named(platform: Composed) -> None:
    folder = Path(platform.wrong("fernet_key", "x"))
    (folder / "fernet_key").unlink()
    done = platform.call("run", "--rm", "--no-deps", "-T", "migrate", FERMION_SECRETS=str(folder))

    assert done.returncode != 0
    assert str(folder / "fernet_key") in done.stderr
