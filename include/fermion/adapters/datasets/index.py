"""What an earlier scan found, so that the next one reads only what changed. Losing it costs time, nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from fermion.adapters.files.placing import write_durably
from fermion.errors import FermionError

Signature = tuple[str | int, ...]
"""What must be equal for a file to count as unchanged: size, times and inode of a file; size and ETag of an object."""


class ScanIndex:
    """Checksums by dataset URI, path and signature, one JSON file a URI below ``folder``; None remembers nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def recall(self, uri: str) -> Mapping[str, tuple[Signature, str]]:
        """Path to (signature, sha256) as last remembered."""
        if self._folder is None:
            return {}
        try:
            stored = json.loads(self._path(uri).read_bytes())
            return {path: (tuple(signature), str(sha256)) for path, (signature, sha256) in stored["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def remember(self, uri: str, files: Mapping[str, tuple[Signature, str]]) -> None:
        """Replace what is remembered of that URI."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            content = {"uri": uri, "files": {path: [list(sign), sha256] for path, (sign, sha256) in files.items()}}
            write_durably(self._path(uri), json.dumps(content).encode())
        except (OSError, FermionError):
            return  # the next scan reads everything again

    def _path(self, uri: str) -> Path:
        if self._folder is None:
            raise ValueError("an index without a folder has no files")
        return self._folder / f"{hashlib.sha256(uri.encode()).hexdigest()[:32]}.json"
