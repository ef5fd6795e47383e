"""This machine as a node: its GPUs by NVML, else the slots that the configuration declares, how busy the GPUs are, its memory.

A machine with NVIDIA hardware but no working driver says so in the node's detail. NVML that breaks after the driver was
found makes the cluster *unavailable*: it never turns measured devices into declared ones.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fermion.domain.figures import Method
from fermion.domain.pools import Device, Node
from fermion.errors import OutsideUnavailable
from fermion.ports import Clock

GPU_MODEL_LABEL = "fermion.dev/gpu-model"
HOST_LABEL = "kubernetes.io/hostname"
DECLARED_MODEL = "declared"

_MIB = 1024 * 1024
_NVIDIA_VENDOR = "0x10de"
_DISPLAY_CLASS = "0x03"  # PCI base class of VGA and 3D controllers


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Mean utilisation (0 to 1) and memory in use of some devices; both None with a ``reason``."""

    utilisation: float | None
    memory_mib: float | None
    reason: str | None = None


class NoDriver(Exception):
    """NVML cannot be used on this machine because there is no driver; ``str`` says what is missing."""


class ProcessNodes:
    """The ``Nodes`` port for this machine.

    ``declared_slots`` stand in for GPUs only where no driver answers.
    """

    def __init__(
        self,
        cluster: str,
        clock: Clock,
        *,
        declared_slots: int = 0,
        measure: bool = True,
        name: str | None = None,
        pci: Path = Path("/sys/bus/pci/devices"),
        proc: Path = Path("/proc"),
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._declared_slots = declared_slots
        self._measure = measure
        self._name = name or socket.gethostname()
        self._pci = pci
        self._proc = proc

    def list_nodes(self) -> Sequence[Node]:
        """This machine, with its devices now.

        Raises:
            OutsideUnavailable: a driver is there and does not answer.
        """
        devices, detail = self._measured()
        if not devices:
            devices = tuple(
                Device(id=f"slot-{number}", model=DECLARED_MODEL, method=Method.DECLARED)
                for number in range(self._declared_slots)
            )
        return [
            Node(
                name=self._name,
                cluster=self._cluster,
                devices=devices,
                observed_at=self._clock.now(),
                memory_mib=usable_memory_mib(self._proc),
                labels=self._labels(devices),
                detail=detail,
            )
        ]

    def device_use(self, devices: Sequence[str]) -> DeviceUse:
        """How busy those devices are, by NVML; None with the reason for declared slots or a driver that does not answer."""
        if not devices:
            return DeviceUse(None, None, "no device was granted")
        if all(device.startswith("slot-") for device in devices):
            return DeviceUse(None, None, "declared slots are no devices; nothing can be measured on them")
        try:
            return _measured_use(devices)
        except (NoDriver, OutsideUnavailable) as error:
            return DeviceUse(None, None, str(error))

    def _measured(self) -> tuple[tuple[Device, ...], str]:
        if not self._measure:
            return (), f"devices are not looked for, as configured; {self._declared_slots} declared slots stand in"
        try:
            return _measured_devices()
        except NoDriver as error:
            return (), self._without_driver(error)

    def _labels(self, devices: Sequence[Device]) -> dict[str, str]:
        labels = {HOST_LABEL: self._name}
        models = sorted({device.model for device in devices})
        if models:
            labels[GPU_MODEL_LABEL] = label_value(models[0])
        return labels

    def _without_driver(self, error: NoDriver) -> str:
        count = nvidia_cards(self._pci)
        slots = f"{self._declared_slots} declared slot{'' if self._declared_slots == 1 else 's'} stand in"
        if count:
            cards = f"{count} NVIDIA device{'' if count == 1 else 's'} on the PCI bus"
            return f"{cards}, but {error}: install the NVIDIA driver to lease them; {slots}"
        return f"no GPU: {error}; {slots}"


def label_value(text: str) -> str:
    """The text as a Kubernetes label value: at most 63 of letters, digits, ``-_.``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:63].strip("-_.")


def nvidia_cards(pci: Path) -> int:
    """NVIDIA display and 3D controllers on the PCI bus, driver or not."""
    return sum(
        _read(card / "vendor") == _NVIDIA_VENDOR and _read(card / "class").startswith(_DISPLAY_CLASS)
        for card in (pci.iterdir() if pci.is_dir() else ())
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""


def usable_memory_mib(proc: Path) -> int | None:
    """The machine's memory or the limit of a control group that this process is in, whichever is less; None: not known."""
    total = re.search(r"^MemTotal:\s+([0-9]+) kB$", _read(proc / "meminfo"), re.MULTILINE)
    known = [*_group_limits(proc), *([int(total[1]) * 1024] if total else [])]
    return min(known) // _MIB if known else None


def _group_limits(proc: Path) -> Iterator[int]:
    """Bytes that the control groups around this process allow, of version 1 and 2; "no limit" is a huge number or no number."""
    mounts = _memory_mounts(proc)
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 2 if not controllers else 1 if "memory" in controllers.split(",") else 0
        if version in mounts:
            # In a container the path may be the host's, of which nothing is here: then only the mount itself counts.
            own = mounts[version] / path.lstrip("/")
            file = "memory.max" if version == 2 else "memory.limit_in_bytes"
            for folder in (own, *own.parents):
                limit = _read(folder / file)
                if re.fullmatch("[0-9]+", limit):
                    yield int(limit)
                if folder == mounts[version]:
                    break


def _memory_mounts(proc: Path) -> dict[int, Path]:
    """Where the control groups that limit memory are mounted, by their version."""
    mounts = {}
    for line in _read(proc / "self" / "mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        kind, *options = right.split(" ")
        if kind == "cgroup2":
            mounts[2] = Path(left.split(" ")[4])
        elif kind == "cgroup" and "memory" in options[-1].split(","):
            mounts[1] = Path(left.split(" ")[4])
    return mounts


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML, initialised.

    Raises:
        NoDriver: its library or the driver is not there.
        OutsideUnavailable: any other failure of NVML, also later in the block.
    """
    try:
        import pynvml
    except ImportError as error:
        raise NoDriver("the package nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded) as error:
        raise NoDriver(f"NVML says {str(error)!r}") from error
    except pynvml.NVMLError as error:
        raise OutsideUnavailable(
            f"the NVIDIA driver is installed and NVML says {str(error)!r}; run nvidia-smi, and restart the machine if the "
            "driver was just updated",
            what="nvml",
        ) from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise OutsideUnavailable(f"NVML stopped answering: {error}", what="nvml") from error
    finally:
        pynvml.nvmlShutdown()


def _measured_devices() -> tuple[tuple[Device, ...], str]:
    """Every device that answers, and a sentence about those that do not."""
    devices: list[Device] = []
    silent: list[str] = []
    with _nvml() as nvml:
        for number in range(nvml.nvmlDeviceGetCount()):
            try:
                devices.append(_device(nvml, nvml.nvmlDeviceGetHandleByIndex(number)))
            except nvml.NVMLError as error:
                silent.append(f"device {number} does not answer ({error}) and is left out")
    return tuple(devices), "; ".join(silent)


def _device(nvml: Any, handle: Any) -> Device:
    return Device(
        id=_string(nvml.nvmlDeviceGetUUID(handle)),
        model=_string(nvml.nvmlDeviceGetName(handle)),
        method=Method.MEASURED,
        memory_mib=int(nvml.nvmlDeviceGetMemoryInfo(handle).total) // _MIB,
    )


def _measured_use(devices: Sequence[str]) -> DeviceUse:
    with _nvml() as nvml:
        handles = [nvml.nvmlDeviceGetHandleByUUID(device) for device in devices]
        busy = [int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) for handle in handles]
        used = [int(nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles]
    return DeviceUse(sum(busy) / len(busy) / 100, sum(used) / _MIB)


def _string(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
