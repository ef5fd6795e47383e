"""The model repository in a local folder.

    <root>/<model>/<number>/manifest.json   the version; its files lie beside it
    <root>/.staging/<key>-<random>/         a publish in progress, locked by its publisher
    <root>/.keys/<hash>                     written before a number is claimed: only then can the key have a version

A number is claimed by renaming the finished folder onto it, which the file system lets only one publisher do.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from fermion.adapters.files.locks import try_lock
from fermion.adapters.files.placing import (
    free_bytes,
    is_full,
    make_folder,
    place,
    remove_tree,
    seal,
    size_of,
    sync_folder,
    write_durably,
)
from fermion.adapters.files.trees import Found, Tree, copy, hash_file, in_parallel, look
from fermion.adapters.models.drafts import checked_files
from fermion.adapters.models.manifest import NAME, Manifest, numbers_among
from fermion.adapters.models.published import Published, digest_of
from fermion.domain.artifacts import FileEntry, ModelDraft, ModelVersion
from fermion.domain.model_names import problems_of
from fermion.domain.retention import Freed
from fermion.errors import OutsideBroken, OutsideUnavailable

_MIB = 1 << 20


class LocalModels(Published):
    """Keeps ``ports.ModelRepository`` in the folder ``root``.

    ``reserve`` are bytes that must stay free on the disk after a publish.
    """

    def __init__(self, root: Path, *, reserve: int = 64 * _MIB) -> None:
        super().__init__(workers=1)
        self._root = root.absolute()
        self._reserve = reserve

    # --- publishing ---

    def publish(self, draft: ModelDraft, folder: Path, *, key: str) -> ModelVersion:
        """See ``ports.ModelRepository``. The files are copied (shared copy on write where the file system can).

        Raises:
            RequestRefused: the model's name or the folder has problems.
            OutsideUnavailable: the disk is full; nothing is left behind.
            OutsideBroken: a file was changed while it was copied.
        """
        earlier, newest = self._look_for(draft.model, key)
        if earlier is not None:
            return earlier
        tree = checked_files(draft, folder)
        self._clear_dead()
        with self._translated(draft, tree):
            self._check_room(draft, tree)
            with self._staging(key) as staging:
                manifest = self._fill(draft, tree, staging, key)
                return self._claim(manifest, staging, newest)

    def _check_room(self, draft: ModelDraft, tree: Tree) -> None:
        free = free_bytes(self._root)
        if free < tree.size_bytes + self._reserve:
            raise OutsideUnavailable(self._full(draft, tree, free), what=draft.model)

    def _full(self, draft: ModelDraft, tree: Tree, free: int) -> str:
        return (
            f"the model repository {self._root} has {free / _MIB:.1f} MiB free; model '{draft.model}' needs "
            f"{tree.size_bytes / _MIB:.1f} MiB and {self._reserve / _MIB:.1f} MiB must stay free. "
            "Free or add disk space, then save again: nothing was stored."
        )

    @contextmanager
    def _translated(self, draft: ModelDraft, tree: Tree) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_full(error):
                raise OutsideUnavailable(self._full(draft, tree, free_bytes(self._root)), what=draft.model) from error
            message = f"the model repository {self._root} cannot be written: {error.strerror} ({error.filename})."
            raise OutsideUnavailable(message, what=draft.model) from error

    @contextmanager
    def _staging(self, key: str) -> Iterator[Path]:
        name = f"{digest_of(key)}-{secrets.token_hex(8)}"
        make_folder(self._root / ".staging")
        lock = self._root / ".staging" / f"{name}.lock"
        folder = self._root / ".staging" / name
        with try_lock(lock):
            try:
                folder.mkdir()
                yield folder
            finally:
                remove_tree(folder)
                lock.unlink(missing_ok=True)

    def _fill(self, draft: ModelDraft, tree: Tree, staging: Path, key: str) -> Manifest:
        # The manifest's name belongs to the repository: a model that brings one of its own gets a folder of its own.
        files_in = "files" if any(found.path.split("/")[0] == NAME for found in tree.files) else "."
        files = in_parallel(partial(_copy_into, staging / files_in), tree.files)
        return Manifest.of(draft, 0, files=files, files_in=files_in, key=key)

    def _claim(self, manifest: Manifest, staging: Path, newest: int) -> ModelVersion:
        seal(staging)
        self._note_key(manifest)
        number = newest
        while True:
            number += 1
            numbered = manifest.numbered(number)
            write_durably(staging / NAME, numbered.to_bytes(), mode=0o444)
            target = self._root / manifest.model / str(number)
            if place(staging, target):
                return numbered.to_version(self._uri(numbered))
            taken = self._read(manifest.model, number)
            if taken is not None and taken.key == manifest.key:
                return taken.to_version(self._uri(taken))

    # --- idempotency ---

    def _note_key(self, manifest: Manifest) -> None:
        path = self._key(manifest.model, manifest.key)
        make_folder(path.parent)
        path.touch()
        sync_folder(path.parent)

    def _key(self, model: str, key: str) -> Path:
        return self._root / ".keys" / digest_of(f"{model}\0{key}")

    # --- reading ---

    def _has_note(self, model: str, key: str) -> bool:
        return self._key(model, key).exists()

    def _models_below(self, prefix: str) -> Iterator[str]:
        for name in _folders(self._root / prefix):
            path = f"{prefix}/{name}" if prefix else name
            if name.isdecimal() or problems_of(path):
                continue
            if any((self._root / path / str(number) / NAME).is_file() for number in self._numbers(path)):
                yield path
            yield from self._models_below(path)

    def _numbers(self, model: str) -> list[int]:
        return numbers_among(_folders(self._root / model))

    def _read(self, model: str, number: int) -> Manifest | None:
        path = self._root / model / str(number) / NAME
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise OutsideUnavailable(f"{path} cannot be read: {error.strerror}.", what=model) from error
        manifest = Manifest.from_bytes(content, where=str(path))
        if (manifest.model, manifest.number) != (model, number):
            message = f"{path} is the manifest of {manifest.model}/{manifest.number}; move it back or delete it."
            raise OutsideBroken(message, what=model)
        return manifest

    def _uri(self, manifest: Manifest) -> str:
        return self._files_of(manifest).as_uri()

    def _files_of(self, manifest: Manifest) -> Path:
        return self._root / manifest.model / str(manifest.number) / manifest.files_in

    # --- verifying and cleaning ---

    def verify(self, version: ModelVersion) -> Sequence[str]:
        """See ``ports.ModelRepository``; files that are there beyond the manifest are named as well."""
        manifest = self._read(version.model, version.number)
        if manifest is None:
            return (f"{version.path} has no manifest in {self._root}.",)
        if manifest.checksum != version.checksum:
            return (f"{version.path} has checksum {manifest.checksum}, expected {version.checksum}.",)
        folder = self._files_of(manifest)
        there = {found.path for found in look(folder, field="model").files} - {NAME}
        listed = {entry.path for entry in manifest.files}
        found = [f"{path} is not in the manifest." for path in sorted(there - listed)]
        checked = in_parallel(partial(_compare, folder), manifest.files)
        return tuple(found + [sentence for sentence in checked if sentence])

    def clear_leftovers(self, *, older_than: timedelta, now: datetime) -> Freed:
        """See ``ports.ModelRepository``. Who died is known by the lock, whatever its age."""
        return self._clear_dead()

    def _clear_dead(self) -> Freed:
        freed = Freed()
        for name in _folders(self._root / ".staging"):
            folder, lock = self._root / ".staging" / name, self._root / ".staging" / f"{name}.lock"
            with try_lock(lock) as is_dead:
                if is_dead:
                    freed += Freed(items=1, size_bytes=size_of(folder))
                    remove_tree(folder)
                    lock.unlink(missing_ok=True)
        return freed


def _copy_into(folder: Path, found: Found) -> FileEntry:
    return copy(found, folder / found.path)


def _compare(folder: Path, entry: FileEntry) -> str | None:
    path = folder / entry.path
    try:
        size = path.lstat().st_size
        sha256 = hash_file(path)
    except FileNotFoundError:
        return f"{entry.path} is missing."
    except OSError as error:
        return f"{entry.path} cannot be read: {error.strerror}."
    if size != entry.size:
        return f"{entry.path} has {size} bytes, the manifest says {entry.size}."
    return None if sha256 == entry.sha256 else f"{entry.path} has sha256 {sha256}, the manifest says {entry.sha256}."


def _folders(at: Path) -> list[str]:
    try:
        with os.scandir(at) as entries:
            return sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
