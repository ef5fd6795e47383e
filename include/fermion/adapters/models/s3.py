"""The model repository in an S3 bucket that keeps conditional writes (Amazon S3, MinIO, Ceph, Swift, …).

    <prefix>/<model>/<number>/manifest.json       the version; it names where its files lie
    <prefix>/<model>/.files/<key>-<random>/…      the files of one publish, under their own names
    <prefix>/<model>/.keys/<hash>                 written before a number is claimed: only then can the key have a version

A number is claimed by creating its manifest with ``If-None-Match: *``, which the store lets only one publisher do.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from fermion.adapters.files.trees import in_parallel
from fermion.adapters.models.drafts import checked_files
from fermion.adapters.models.manifest import NAME, Manifest, numbers_among
from fermion.adapters.models.published import Published, digest_of
from fermion.adapters.s3.client import S3Store, Stored, translated
from fermion.adapters.s3.download import hash_object
from fermion.adapters.s3.upload import TreeUpload
from fermion.domain.artifacts import FileEntry, ModelDraft, ModelVersion
from fermion.domain.model_names import problems_of
from fermion.domain.retention import Freed
from fermion.errors import OutsideBroken

_PROBE = ".conditional-write"


class S3Models(Published):
    """Keeps ``ports.ModelRepository`` below ``s3://bucket/prefix``."""

    def __init__(self, store: S3Store, *, bucket: str, prefix: str = "") -> None:
        super().__init__(workers=store.workers)
        self.store = store
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._is_probed = False

    # --- publishing ---

    def publish(self, draft: ModelDraft, folder: Path, *, key: str) -> ModelVersion:
        """See ``ports.ModelRepository``.

        Raises:
            RequestRefused: the model's name or the folder has problems.
            OutsideUnavailable: the store does not answer; no version exists then.
            OutsideBroken: the store refuses or ignores conditional writes, or a file was changed while it was sent.
        """
        earlier, newest = self._look_for(draft.model, key)
        if earlier is not None:
            return earlier
        tree = checked_files(draft, folder)
        self._probe()
        files_in = f".files/{digest_of(key)}-{secrets.token_hex(8)}"
        upload = TreeUpload(self.store, bucket=self._bucket, prefix=self._key(draft.model, f"{files_in}/"))
        files = upload.run(tree.files)
        return self._claim(Manifest.of(draft, 0, files=files, files_in=files_in, key=key), newest)

    def _claim(self, manifest: Manifest, newest: int) -> ModelVersion:
        self.store.create(self._bucket, self._key_note(manifest.model, manifest.key), b"")
        number = newest
        while True:
            number += 1
            numbered = manifest.numbered(number)
            if self.store.create(self._bucket, self._manifest_key(manifest.model, number), numbered.to_bytes()):
                return numbered.to_version(self._uri(numbered))
            taken = self._read(manifest.model, number)
            if taken is not None and taken.key == manifest.key:
                self._delete_files(manifest)
                return taken.to_version(self._uri(taken))

    def _delete_files(self, manifest: Manifest) -> None:
        prefix = self._key(manifest.model, f"{manifest.files_in}/")
        self.store.delete(self._bucket, [f"{prefix}{entry.path}" for entry in manifest.files])

    def _probe(self) -> None:
        """See once that the store keeps conditional writes: one that ignores them would lose versions silently."""
        key = f"{self._prefix}{_PROBE}"
        if (
            not self._is_probed
            and self.store.create(self._bucket, key, b"")
            and self.store.create(self._bucket, key, b"")
        ):
            message = f"the store of s3://{self._bucket} ignores If-None-Match, so two publishers could get one number."
            raise OutsideBroken(f"{message} Use a store that keeps conditional writes.", what=self._bucket)
        self._is_probed = True

    # --- reading ---

    def _has_note(self, model: str, key: str) -> bool:
        return self.store.get(self._bucket, self._key_note(model, key)) is not None

    def _models_below(self, prefix: str) -> Iterator[str]:
        names = self.store.folders(self._bucket, self._key(prefix, "") if prefix else self._prefix)
        if prefix and any(self._read(prefix, number) for number in numbers_among(names)):
            yield prefix
        for name in names:
            path = f"{prefix}/{name}" if prefix else name
            if not problems_of(path):
                yield from self._models_below(path)

    def _numbers(self, model: str) -> list[int]:
        return numbers_among(self.store.folders(self._bucket, self._key(model, "")))

    def _read(self, model: str, number: int) -> Manifest | None:
        key = self._manifest_key(model, number)
        content = self.store.get(self._bucket, key)
        return None if content is None else Manifest.from_bytes(content, where=f"s3://{self._bucket}/{key}")

    # --- verifying and cleaning ---

    def verify(self, version: ModelVersion) -> Sequence[str]:
        """See ``ports.ModelRepository``; files that are there beyond the manifest are named as well."""
        manifest = self._read(version.model, version.number)
        if manifest is None:
            return (f"{version.path} has no manifest in s3://{self._bucket}/{self._prefix}.",)
        if manifest.checksum != version.checksum:
            return (f"{version.path} has checksum {manifest.checksum}, expected {version.checksum}.",)
        prefix = self._key(manifest.model, f"{manifest.files_in}/")
        there = {each.key[len(prefix) :]: each for each in self.store.objects(self._bucket, prefix)}
        listed = {entry.path for entry in manifest.files}
        found = [f"{path} is not in the manifest." for path in sorted(there.keys() - listed)]
        compare = partial(self._compare, there)
        checked = in_parallel(compare, manifest.files, workers=self.store.workers)
        return tuple(found + [sentence for sentence in checked if sentence])

    def _compare(self, there: dict[str, Stored], entry: FileEntry) -> str | None:
        stored = there.get(entry.path)
        if stored is None:
            return f"{entry.path} is missing."
        if stored.size != entry.size:
            return f"{entry.path} has {stored.size} bytes, the manifest says {entry.size}."
        sha256 = hash_object(self.store, self._bucket, stored)
        return (
            None if sha256 == entry.sha256 else f"{entry.path} has sha256 {sha256}, the manifest says {entry.sha256}."
        )

    def clear_leftovers(self, *, older_than: timedelta, now: datetime) -> Freed:
        """See ``ports.ModelRepository``: uploads are aborted, files deleted. A publish that is still under way looks the same."""
        uploads = self._abort_uploads(now - older_than)
        old = [each for each in self.store.objects(self._bucket, self._prefix) if each.changed_at <= now - older_than]
        places = [(each, place) for each in old if (place := _files_prefix(each.key)) is not None]
        used = self._used_prefixes()  # after the listing, so that a version claimed meanwhile is seen
        stale = [each for each, place in places if place not in used]
        self.store.delete(self._bucket, [each.key for each in stale])
        return Freed(items=uploads + len(stale), size_bytes=sum(each.size for each in stale))

    def _abort_uploads(self, before: datetime) -> int:
        aborted = 0
        client = self.store.client()
        with translated(f"s3://{self._bucket}/{self._prefix}"):
            # Without the prefix: MinIO lists uploads of a prefix only if it is one object's whole key.
            for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket):
                for each in page.get("Uploads", ()):
                    is_ours = each["Key"].startswith(self._prefix) and _files_prefix(each["Key"]) is not None
                    if is_ours and each["Initiated"] <= before:
                        client.abort_multipart_upload(Bucket=self._bucket, Key=each["Key"], UploadId=each["UploadId"])
                        aborted += 1
        return aborted

    def _used_prefixes(self) -> set[str]:
        manifests = (self._read(model, number) for model in self._models_below("") for number in self._numbers(model))
        return {self._key(manifest.model, f"{manifest.files_in}/") for manifest in manifests if manifest}

    # --- keys ---

    def _key(self, model: str, rest: str) -> str:
        return f"{self._prefix}{model}/{rest}"

    def _manifest_key(self, model: str, number: int) -> str:
        return self._key(model, f"{number}/{NAME}")

    def _key_note(self, model: str, key: str) -> str:
        return self._key(model, f".keys/{digest_of(key)}")

    def _uri(self, manifest: Manifest) -> str:
        return f"s3://{self._bucket}/{self._key(manifest.model, manifest.files_in)}"


def _files_prefix(key: str) -> str | None:
    """``…/.files/<publish>/`` of a file's key; None for every other object."""
    before, mark, after = key.partition("/.files/")
    return f"{before}{mark}{after.split('/')[0]}/" if mark and "/" in after else None
