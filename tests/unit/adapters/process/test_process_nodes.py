"""The machine as a node: declared slots without a driver, real NVML calls against a compiled stand-in for its library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fermion.adapters.process.nodes import ProcessNodes, label_value, nvidia_cards, usable_memory_mib

DOUBLE = Path(__file__).parents[3] / "components" / "nvml_double.c"
NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
ASK = """
import json, sys
from datetime import UTC, datetime
from pathlib import Path
from fermion.adapters.process.nodes import ProcessNodes
from fermion.errors import FermionError
class Clock:
    def now(self): return datetime.now(UTC)
nodes = ProcessNodes("local", Clock(), declared_slots=2, name="box", pci=Path(sys.argv[1]))
answer = {}
try:
    node = nodes.list_nodes()[0]
    answer["devices"] = [[d.id, d.model, str(d.method), d.memory_mib] for d in node.devices]
    answer["labels"], answer["detail"] = dict(node.labels), node.detail
except FermionError as error:
    answer["error"] = [error.code, error.message]
use = nodes.device_use(json.loads(sys.argv[2]))
answer["use"] = [use.utilisation, use.memory_mib, use.reason]
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compiled stand-in under the real library's name."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine to build the NVML stand-in with")
    folder = tmp_path_factory.mktemp("nvml")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(target), str(DOUBLE)], check=True, timeout=60)
    return folder


def ask(library: Path | None, pci: Path, *devices: str, **settings: int) -> dict[str, Any]:
    """What a fresh process sees with that library and those settings of the stand-in."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    environment |= {f"NVML_DOUBLE_{name.upper()}": str(value) for name, value in settings.items()}
    if library is not None:
        environment["LD_LIBRARY_PATH"] = str(library)
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(pci), json.dumps(devices)],
        env=environment,
        capture_output=True,
        timeout=60,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def make_card(pci: Path, number: int, *, vendor: str = "0x10de", kind: str = "0x030200") -> None:
    card = pci / f"0000:0{number}:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text(vendor + "\n")
    (card / "class").write_text(kind + "\n")


def test_devices_are_found_by_uuid_with_model_and_memory(library: Path, tmp_path: Path) -> None:
    seen = ask(library, tmp_path, gpus=2)

    assert seen["devices"] == [
        ["GPU-00000000-double", "NVIDIA H200", "measured", 144384],
        ["GPU-00000001-double", "NVIDIA H200", "measured", 144384],
    ]
    assert seen["labels"] == {"kubernetes.io/hostname": "box", "fermion.dev/gpu-model": "NVIDIA-H200"}
    assert seen["detail"] == ""


def test_use_is_the_mean_utilisation_and_the_sum_of_memory_over_the_devices(library: Path, tmp_path: Path) -> None:
    seen = ask(library, tmp_path, "GPU-00000000-double", "GPU-00000001-double", gpus=2)

    assert seen["use"] == [pytest.approx(0.3), 3072.0, None]


def test_use_of_a_device_that_is_gone_is_none_with_a_reason(library: Path, tmp_path: Path) -> None:
    seen = ask(library, tmp_path, "GPU-00000009-double", gpus=2)

    assert seen["use"][:2] == [None, None]
    assert "NVML stopped answering" in seen["use"][2]


def test_a_lost_device_is_left_out_and_named(library: Path, tmp_path: Path) -> None:
    seen = ask(library, tmp_path, gpus=2, lost=0)

    assert [device[0] for device in seen["devices"]] == ["GPU-00000001-double"]
    assert "device 0 does not answer (GPU is lost)" in seen["detail"]


def test_a_driver_that_breaks_makes_the_cluster_unavailable_not_declared(library: Path, tmp_path: Path) -> None:
    seen = ask(library, tmp_path, gpus=2, init=18)

    assert "devices" not in seen
    assert seen["error"][0] == "outside_unavailable"
    assert "version mismatch" in seen["error"][1]


def test_hardware_without_a_driver_says_so_and_declared_slots_stand_in(library: Path, tmp_path: Path) -> None:
    make_card(tmp_path, 1)
    make_card(tmp_path, 2)
    seen = ask(library, tmp_path, gpus=2, init=9)

    assert seen["devices"] == [["slot-0", "declared", "declared", None], ["slot-1", "declared", "declared", None]]
    assert seen["detail"].startswith("2 NVIDIA devices on the PCI bus, but NVML says 'Driver Not Loaded'")
    assert seen["labels"]["fermion.dev/gpu-model"] == "declared"


def test_a_driver_without_devices_leaves_the_declared_slots(library: Path, tmp_path: Path) -> None:
    assert [device[0] for device in ask(library, tmp_path, gpus=0)["devices"]] == ["slot-0", "slot-1"]


class FixedClock:
    """Always the same moment."""

    def now(self) -> datetime:
        return NOW


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        pytest.param([], 0, id="an empty bus"),
        pytest.param([{}], 1, id="a 3D controller"),
        pytest.param([{"kind": "0x030000"}], 1, id="a VGA controller"),
        pytest.param([{"kind": "0x040300"}], 0, id="the sound function of a card"),
        pytest.param([{"vendor": "0x8086"}], 0, id="another vendor"),
        pytest.param([{}, {}, {"vendor": "0x1002"}], 2, id="a mixture"),
    ],
)
def test_nvidia_cards_are_counted_on_the_bus(tmp_path: Path, cards: list[Mapping[str, str]], expected: int) -> None:
    for number, card in enumerate(cards):
        make_card(tmp_path, number, **card)

    assert nvidia_cards(tmp_path) == expected


def test_a_machine_without_a_pci_bus_has_no_cards(tmp_path: Path) -> None:
    assert nvidia_cards(tmp_path / "nothing") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3", id="blanks"),
        pytest.param("(odd) name!", "odd-name", id="it begins and ends with a letter or digit"),
        pytest.param("x" * 80, "x" * 63, id="it is at most 63 long"),
    ],
)
def test_a_model_becomes_a_valid_label(text: str, expected: str) -> None:
    assert label_value(text) == expected


def test_declared_slots_are_never_measured() -> None:
    use = ProcessNodes("local", FixedClock(), declared_slots=1).device_use(["slot-0"])

    assert (use.utilisation, use.memory_mib) == (None, None)
    assert use.reason is not None
    assert "declared" in use.reason


MIB = 1024 * 1024
NO_LIMIT = 9223372036854771712
"""What version 1 says where nothing is limited."""


def make_proc(tmp_path: Path, *, total_mib: int | None = 8192, groups: str = "", mounts: str = "") -> Path:
    """A /proc with so much memory, whose process is in those control groups."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    if total_mib is not None:
        (proc / "meminfo").write_text(f"MemTotal:       {total_mib * 1024} kB\nMemFree:        1 kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    (proc / "self" / "mountinfo").write_text(mounts)
    return proc


def limit(folder: Path, file: str, value: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        pytest.param({"": "max", "a": "max", "a/b": "max"}, 8192, id="nothing is limited"),
        pytest.param({"a/b": 512 * MIB}, 512, id="its own group"),
        pytest.param({"a": 512 * MIB, "a/b": "max"}, 512, id="a group around it"),
        pytest.param({"": 256 * MIB, "a": 512 * MIB}, 256, id="the mount itself, as in a container"),
        pytest.param({"a/b/c": 16 * MIB, "z": 16 * MIB}, 8192, id="groups that it is not in"),
        pytest.param({"a/b": 9000 * MIB}, 8192, id="more than the machine has"),
        pytest.param({}, 8192, id="the group's path is the host's and not here"),
    ],
)
def test_memory_is_what_the_machine_has_or_what_its_control_groups_allow(
    tmp_path: Path, limits: Mapping[str, object], expected: int
) -> None:
    mount = tmp_path / "groups"
    for path, value in limits.items():
        limit(mount / path, "memory.max", value)
    mounts = f"30 24 0:26 / {mount} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"

    assert usable_memory_mib(make_proc(tmp_path, groups="0::/a/b\n", mounts=mounts)) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [pytest.param(512 * MIB, 512, id="limited"), pytest.param(NO_LIMIT, 8192, id="not limited")]
)
def test_memory_by_control_groups_of_the_first_version(tmp_path: Path, value: int, expected: int) -> None:
    mount = tmp_path / "groups"
    limit(mount / "memory" / "docker" / "1", "memory.limit_in_bytes", value)
    mounts = (
        f"36 35 0:30 / {mount}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        f"37 35 0:31 / {mount}/memory rw - cgroup cgroup rw,memory\n"
    )
    groups = "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n"

    assert usable_memory_mib(make_proc(tmp_path, groups=groups, mounts=mounts)) == expected


def test_memory_that_nothing_tells_is_not_known(tmp_path: Path) -> None:
    assert usable_memory_mib(make_proc(tmp_path, total_mib=None)) is None


def test_the_node_has_the_memory_of_this_machine() -> None:
    (node,) = ProcessNodes("local", FixedClock(), declared_slots=1, measure=False).list_nodes()

    assert node.memory_mib == usable_memory_mib(Path("/proc"))
    assert node.memory_mib is not None
    assert 0 < node.memory_mib <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
