"""The engines that this machine can serve, really served on the process driver: the digits example on kserve, and MLServer."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fermion.adapters.inference import ProtocolInference
from fermion.adapters.process.environments import ProcessImages
from fermion.adapters.process.nodes import ProcessNodes
from fermion.adapters.process.replicas import ProcessReplicas
from fermion.domain.rollout.plan import Plan
from fermion.domain.serving import engines
from fermion.domain.serving.engine_presets import ENGINES
from fermion.domain.serving.output_check import check_outputs
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaSpec, ReplicaState
from fermion.domain.serving.services import ApiType, ServiceSpec
from fermion.domain.serving.tensors import Signature, Target, Tensor, signature_of
from fermion.domain.workloads import ExitCause, Grant, Slice
from fermion.errors import OutsideBroken, OutsideUnavailable, RequestRefused

pytestmark = [pytest.mark.components, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "include" / "examples" / "digits"
LOCKS = {
    "digits-server:1": DIGITS / "server" / "requirements.lock",
    "mlserver:1": Path(__file__).parent / "mlserver" / "requirements.lock",
}
BY_ENVIRONMENT = {
    "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_sklearn.SKLearnModel",
    "MLSERVER_MODEL_URI": "{model_dir}/model.joblib",
}
LOG_LINE = re.compile(r"serve\.py: |[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:,]+ [A-Z]+ ")
"""What every line that the example prints begins with."""

BOTH = pytest.mark.parametrize("api_type", [ApiType.REST, ApiType.GRPC])
LIMIT_S = 180


class SystemClock:
    """The real present."""

    def now(self) -> datetime:
        return datetime.now(UTC)


def wait_for(is_true: Callable[[], object], within_s: float = LIMIT_S) -> None:
    """Look until it is true; fails the test when it takes too long."""
    until = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < until, f"did not come true within {within_s} s"
        time.sleep(0.02)


# --- what is served ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Image to its environment, as the driver makes it."""
    images = ProcessImages(tmp_path_factory.mktemp("images"), LOCKS)
    digests = {each.id: each.digest for each in images.known()}
    return lambda name: images.pull(name, digests[name])


@pytest.fixture(scope="module")
def model(image: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest model of the example's own training."""
    place = tmp_path_factory.mktemp("training")
    (place / "digits").symlink_to(DIGITS / "data")
    command = [f"{image('digits-server:1')}/bin/python", str(DIGITS / "code" / "train.py")]
    told = {"PATH": os.environ["PATH"], "FERMION_DATA_DIR": str(place), "FERMION_OUTPUT_DIR": str(place / "model")}
    subprocess.run(command, env=told, capture_output=True, timeout=LIMIT_S, check=True)
    return place / "model"


@pytest.fixture(scope="module")
def rows() -> list[tuple[tuple[float, ...], int]]:
    """Images and their digits."""
    lines = gzip.decompress((DIGITS / "data" / "digits.csv.gz").read_bytes()).decode().splitlines()[1:]
    numbers = [[int(number) for number in line.split(",")] for line in lines]
    return [(tuple(pixel / 16 for pixel in row[:-1]), row[-1]) for row in numbers]


def pixels(images: Sequence[Sequence[float]], datatype: str = "FP64", **changes: object) -> tuple[Tensor, ...]:
    data = tuple(value for image in images for value in image)
    tensor = Tensor(name="pixels", datatype=datatype, shape=(len(images), 64), data=data)
    return (replace(tensor, **changes),)  # type: ignore[arg-type]


WHITE = pixels([[0.5] * 64])


# --- serving ----------------------------------------------------------------------------------------------------------


@dataclass
class Served:
    """A replica that is ready, and whoever asks it."""

    replicas: ProcessReplicas
    name: str
    seen: ReplicaSeen
    inference: ProtocolInference

    def target(self, api_type: ApiType) -> Target:
        endpoint = self.seen.endpoints["grpc" if api_type is ApiType.GRPC else "http"]
        address = f"{endpoint.host}:{endpoint.port}"
        return Target(
            address=address if api_type is ApiType.GRPC else f"http://{address}", model="digits", api_type=api_type
        )

    def ask(self, api_type: ApiType, inputs: Sequence[Tensor] = WHITE) -> Sequence[Tensor]:
        return self.inference.predict(self.target(api_type), inputs)

    def metrics(self, engine: str) -> str:
        where = ENGINES[engine].metrics
        url = f"http://127.0.0.1:{self.seen.endpoints[where.port].port}{where.path}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    @property
    def log(self) -> str:
        return self.replicas.log(self.name).text

    def pid(self) -> int:
        folder = self.replicas._runners.folder(self.name)
        return int(json.loads((folder / "started.json").read_text())["pid"])


class Bench:
    """A location root for model servers."""

    def __init__(self, root: Path, image: Callable[[str], str]) -> None:
        clock = SystemClock()
        nodes = ProcessNodes("local", clock, declared_slots=1)
        self.replicas = ProcessReplicas(root, clock, device_use=nodes.device_use)
        self.image = image
        self.count = 0

    def spec(self, engine: str, model: Path, environment: Mapping[str, str]) -> ReplicaSpec:
        """A replica as the engine's preset wants it."""
        image = "digits-server:1" if engine == "kserve" else "mlserver:1"
        asked = ServiceSpec(
            name="digits",
            model="digits",
            engine=engine,
            image=image,
            pool="local/declared",
            plan=Plan(steps=(), metrics=()),
            repository="file:///code.git",
            environment=environment,
        )
        assert engines.problems_of(asked, "process") == []
        assert engines.layout_problems(asked, [file.name for file in model.iterdir()]) == []
        self.count += 1
        name = f"inf-digits-001-r{self.count}-1"
        return ReplicaSpec(
            name=name,
            revision=f"inf-digits-001-r{self.count}",
            service="inf-digits-001",
            image=self.image(image),
            code=str(DIGITS / "code"),
            model=str(model),
            model_name="digits",
            model_version=1,
            argv=engines.argv_of(asked),
            log=self.replicas.log_location(name),
            ports=engines.ports_of(asked),
            probes=engines.probes_of(asked),
            environment=engines.environment_of(asked, "process"),
            backoff=timedelta(seconds=60),
        )

    @contextmanager
    def serving(self, engine: str, model: Path, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
        """One that is ready; stopped and gone afterwards."""
        spec = self.spec(engine, model, environment or {})
        name = self.start(spec)
        inference = ProtocolInference(timeout=timedelta(seconds=30))
        try:
            wait_for(lambda: self.replicas.look(name).state is ReplicaState.READY)
            yield Served(self.replicas, name, self.replicas.look(name), inference)
        finally:
            inference.close()
            self.end(name)

    def start(self, spec: ReplicaSpec) -> str:
        self.replicas.prepare(spec)
        slot = (Slice("n0", ("slot-0",)),)
        self.replicas.resume(spec.name, Grant(token=1, slices=slot, devices_are_declared=True))
        return spec.name

    def end(self, name: str) -> None:
        self.replicas.stop(name, grace=timedelta(seconds=30), why="the test has ended")
        wait_for(lambda: self.replicas.look(name).is_gone)
        self.replicas.remove(name)


@pytest.fixture
def bench(tmp_path: Path, image: Callable[[str], str]) -> Iterator[Bench]:
    made = Bench(tmp_path / "serving", image)
    yield made
    made.replicas.end_orphans()


@pytest.fixture(scope="module")
def digits(image: Callable[[str], str], model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The example, served once for all tests that only ask."""
    with Bench(tmp_path_factory.mktemp("serving"), image).serving("kserve", model) as served:
        yield served


def misbehaving(model: Path, place: Path, **faults: object) -> Path:
    """The model as a training makes it that was asked for faults."""
    shutil.copytree(model, place)
    (place / "faults.json").write_text(json.dumps(faults))
    return place


# --- the example ------------------------------------------------------------------------------------------------------


@BOTH
def test_the_example_reads_digits(
    digits: Served, rows: list[tuple[tuple[float, ...], int]], model: Path, api_type: ApiType
) -> None:
    asked = rows[:500]
    outputs = digits.ask(api_type, pixels([image for image, _ in asked]))
    read = dict(zip([output.name for output in outputs], [output.data for output in outputs], strict=True))["digit"]
    assert sum(guess == digit for guess, (_, digit) in zip(read, asked, strict=True)) > 0.95 * len(asked)
    signature = signature_of(json.loads((model / "signature.json").read_text()))
    assert check_outputs(outputs, signature.outputs, rows=len(asked)) == ()


@BOTH
def test_the_example_says_what_it_takes(digits: Served, model: Path, api_type: ApiType) -> None:
    told = digits.inference.signature(digits.target(api_type))
    written = signature_of(json.loads((model / "signature.json").read_text()))
    assert told == Signature(
        inputs=tuple(replace(spec, low=None, high=None) for spec in written.inputs),
        outputs=tuple(replace(spec, low=None, high=None) for spec in written.outputs),
    )
    assert digits.inference.is_ready(digits.target(api_type))


@BOTH
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"shape": (1, 63), "data": (0.0,) * 63}, id="too few columns"),
        pytest.param({"shape": (64,)}, id="one dimension"),
        pytest.param({"shape": (2, 64)}, id="fewer values than the shape says"),
        pytest.param({"shape": (0, 64), "data": ()}, id="nothing"),
        pytest.param({"shape": (2000, 64), "data": (0.0,) * 128_000}, id="too much"),
        pytest.param({"name": "picture"}, id="another name"),
        pytest.param({"datatype": "BYTES", "data": ("a",) * 64}, id="texts"),
        pytest.param({"data": (float("nan"),) * 64}, id="no numbers"),
    ],
)
def test_the_example_refuses_what_is_no_picture(digits: Served, api_type: ApiType, changes: dict[str, object]) -> None:
    with pytest.raises(RequestRefused) as refusal:
        digits.ask(api_type, pixels([[0.0] * 64], **changes))
    assert [problem.code for problem in refusal.value.problems] == ["refused_by_model"]
    # The log comes a little later, so what is counted is lines that are none of their own: a stack has many.
    assert [line for line in digits.log.splitlines() if LOG_LINE.match(line) is None] == []
    assert digits.ask(api_type)


def test_the_example_shows_the_metrics_that_its_preset_names(digits: Served) -> None:
    digits.ask(ApiType.REST)
    shown = digits.metrics("kserve")
    assert all(name in shown for name in engines.metric_names(ENGINES["kserve"]).values())


def test_the_example_says_one_line_when_it_serves_and_none_for_what_goes_well(bench: Bench, model: Path) -> None:
    with bench.serving("kserve", model) as served:
        for _ in range(20):
            served.ask(ApiType.REST)
            served.ask(ApiType.GRPC)
        assert served.log.splitlines() == [f"serve.py: serving digits from {model}"]


@BOTH
def test_what_is_on_its_way_at_term_is_answered(bench: Bench, model: Path, tmp_path: Path, api_type: ApiType) -> None:
    slow = misbehaving(model, tmp_path / "slow", latency_ms=1500)
    with bench.serving("kserve", slow) as served, ThreadPoolExecutor(12) as pool:
        asked: list[Future[Sequence[Tensor]]] = [pool.submit(served.ask, api_type) for _ in range(12)]
        time.sleep(0.9)
        began = time.monotonic()
        served.replicas.stop(served.name, grace=timedelta(seconds=30), why="another takes its place")
        assert [len(each.result(timeout=LIMIT_S)) for each in asked] == [2] * 12
        wait_for(lambda: served.replicas.look(served.name).is_gone)
        assert time.monotonic() - began < 20
        ended = served.replicas.look(served.name).exit
        assert ended is not None
        assert (ended.cause, ended.code) == (ExitCause.STOPPED, 0)
        with pytest.raises(OutsideUnavailable, match="nobody answers"):
            served.ask(api_type)


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrong(image: Callable[[str], str], model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model whose answers are late and no answers, and that keeps memory."""
    place = tmp_path_factory.mktemp("wrong")
    faults = {"nan_share": 1.0, "shape_share": 1.0, "latency_ms": 300, "leak_mib": 8}
    with Bench(place / "serving", image).serving("kserve", misbehaving(model, place / "model", **faults)) as served:
        yield served


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


@BOTH
def test_a_model_made_to_misbehave_does_so_and_the_check_of_outputs_sees_it(
    wrong: Served, model: Path, api_type: ApiType
) -> None:
    expected = signature_of(json.loads((model / "signature.json").read_text())).outputs
    held, began = resident_mib(wrong.pid()), time.monotonic()
    found = [check_outputs(wrong.ask(api_type), expected, rows=1) for _ in range(4)]
    assert time.monotonic() - began > 4 * 0.3
    assert resident_mib(wrong.pid()) - held > 4 * 8 - 2
    for problems in found:
        assert any("not finite" in problem for problem in problems)
        assert any("has the shape [1, 2], not [1]" in problem for problem in problems)


def test_a_model_made_to_misbehave_says_so_when_it_starts(wrong: Served) -> None:
    first = wrong.log.splitlines()[0]
    assert first.startswith("serve.py: THIS MODEL IS MADE TO MISBEHAVE: ")
    assert json.loads(first.partition("MISBEHAVE: ")[2])["leak_mib"] == 8


def test_a_model_fails_as_often_as_it_was_made_to(bench: Bench, model: Path, tmp_path: Path) -> None:
    failed = {ApiType.REST: 0, ApiType.GRPC: 0}
    with bench.serving("kserve", misbehaving(model, tmp_path / "failing", error_share=0.5)) as served:
        for api_type in [ApiType.REST, ApiType.GRPC] * 40:
            try:
                served.ask(api_type)
            except OutsideBroken:
                failed[api_type] += 1
        lines = served.log.splitlines()
    assert all(8 <= count <= 32 for count in failed.values()), failed  # 1 of 30,000 runs is outside
    assert len([line for line in lines if " ERROR " in line]) == sum(failed.values())


def test_a_model_made_to_crash_at_its_start_crashes(bench: Bench, model: Path, tmp_path: Path) -> None:
    spec = bench.spec("kserve", misbehaving(model, tmp_path / "crashing", start="crash"), {})
    name = bench.start(spec)
    wait_for(lambda: bench.replicas.look(name).state is ReplicaState.BACKING_OFF)
    last = bench.replicas.look(name).last_exit
    assert last is not None
    assert last.code == 3
    bench.end(name)


def test_a_model_made_to_hang_is_never_ready_and_can_be_ended(bench: Bench, model: Path, tmp_path: Path) -> None:
    spec = bench.spec("kserve", misbehaving(model, tmp_path / "hanging", start="hang"), {})
    name = bench.start(spec)
    wait_for(lambda: "MISBEHAVE" in bench.replicas.log(name).text)
    time.sleep(1)
    assert bench.replicas.look(name).state is ReplicaState.STARTING
    began = time.monotonic()
    bench.end(name)
    assert time.monotonic() - began < 20


def test_the_stand_in_for_pandas_is_gone_once_the_server_is_imported(image: Callable[[str], str]) -> None:
    program = "import sys, lean_kserve; print('pandas' in sys.modules, lean_kserve.ModelServer.__name__)"
    python = f"{image('digits-server:1')}/bin/python"
    done = subprocess.run(
        [python, "-c", program], cwd=DIGITS / "code", capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    assert done.stdout.split() == ["False", "ModelServer"]


# --- another engine ---------------------------------------------------------------------------------------------------


def test_mlserver_serves_the_same_model_without_any_code(
    bench: Bench, model: Path, rows: list[tuple[tuple[float, ...], int]]
) -> None:
    asked = rows[:200]
    with bench.serving("mlserver", model, BY_ENVIRONMENT) as served:
        for api_type in (ApiType.REST, ApiType.GRPC):
            assert served.inference.is_ready(served.target(api_type))
            (output,) = served.ask(api_type, pixels([image for image, _ in asked]))
            right = sum(guess == digit for guess, (_, digit) in zip(output.data, asked, strict=True))
            assert right > 0.95 * len(asked)
        shown = served.metrics("mlserver")
        names = engines.metric_names(ENGINES["mlserver"])
        assert all(names[word] in shown for word in ("requests", "latency"))
        served.replicas.stop(served.name, grace=timedelta(seconds=30), why="the test has ended")
        wait_for(lambda: served.replicas.look(served.name).is_gone)
        ended = served.replicas.look(served.name).exit
        assert ended is not None
        assert (ended.cause, ended.code) == (ExitCause.STOPPED, 0)
