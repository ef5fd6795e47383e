"""``ports.Catalog`` on every store."""

from __future__ import annotations

from dataclasses import replace

from builders import NOW, at, make_node
from fermion.domain.artifacts import DatasetVersion, FileEntry, Image
from fermion.domain.figures import Method
from fermion.domain.pools import Device
from fermion.ports import Store


def make_version(number: int = 1, *, dataset: str = "digits", files: int = 2, age_s: float = 0) -> DatasetVersion:
    """A version with that many files."""
    entries = tuple(
        FileEntry(path=f"部分/{index}.bin", size=2**33 + index, sha256=f"{index:064x}")
        for index in reversed(range(files))
    )
    return DatasetVersion(
        dataset=dataset, uri="file:///data", checksum=f"sha256:{number}", files=entries, created_at=at(-age_s)
    )


def make_image(name: str = "digits:1", **changes: object) -> Image:
    """An image that was never pulled."""
    values = {
        "id": name,
        "digest": "sha256:1",
        "category": "official",
        "source_type": "environment",
        "source": "config/environments/digits.txt",
        "created_at": at(-10),
        "updated_at": NOW,
    }
    return Image(**{**values, **changes})  # type: ignore[arg-type]


def test_nodes_come_back_as_they_were(store: Store) -> None:
    measured = Device(id="GPU-1", model="NVIDIA H200", method=Method.MEASURED, memory_mib=143_771)
    node = make_node(
        "n1",
        ready=False,
        schedulable=False,
        labels={"gpu": "h200"},
        detail="cordoned",
        devices=(measured,),
        memory_mib=64_000,
    )
    with store.begin() as tx:
        tx.catalog.put_nodes("local", [node, make_node("n0", gpus=2)])
    with store.read() as tx:
        assert tx.catalog.nodes() == [make_node("n0", gpus=2), node]


def test_nodes_that_are_gone_leave_and_other_clusters_stay(store: Store) -> None:
    with store.begin() as tx:
        tx.catalog.put_nodes("local", [make_node("n0"), make_node("n1")])
        tx.catalog.put_nodes("far", [make_node("n0", cluster="far")])
    with store.begin() as tx:
        tx.catalog.put_nodes("local", [make_node("n1", gpus=1, observed_at=at(5))])
    with store.read() as tx:
        assert [(node.cluster, node.name) for node in tx.catalog.nodes()] == [("far", "n0"), ("local", "n1")]
        assert tx.catalog.nodes(cluster="local") == [make_node("n1", gpus=1, observed_at=at(5))]


def test_a_cluster_without_nodes_has_none(store: Store) -> None:
    with store.begin() as tx:
        tx.catalog.put_nodes("local", [make_node()])
        tx.catalog.put_nodes("local", [])
    with store.read() as tx:
        assert tx.catalog.nodes() == []


def test_a_pool_keeps_the_time_it_was_first_seen(store: Store) -> None:
    with store.begin() as tx:
        assert tx.catalog.pool_first_seen("local/declared", now=at(-9)) == at(-9)
    with store.begin() as tx:
        assert tx.catalog.pool_first_seen("local/declared", now=NOW) == at(-9)
    with store.read() as tx:
        assert tx.catalog.pool_first_seen("local/declared", now=NOW) == at(-9)


def test_a_reader_answers_now_for_a_new_pool_and_records_nothing(store: Store) -> None:
    with store.read() as tx:
        assert tx.catalog.pool_first_seen("local/declared", now=at(-9)) == at(-9)
    with store.begin() as tx:
        assert tx.catalog.pool_first_seen("local/declared", now=NOW) == NOW


def test_images_are_replaced_by_id(store: Store) -> None:
    with store.begin() as tx:
        tx.catalog.put_image(make_image("b"))
        tx.catalog.put_image(make_image("a"))
        tx.catalog.put_image(make_image("b", digest="sha256:2", framework="sklearn", size_bytes=2**40))
    with store.read() as tx:
        assert tx.catalog.images() == [
            make_image("a"),
            make_image("b", digest="sha256:2", framework="sklearn", size_bytes=2**40),
        ]


def test_a_dataset_version_comes_back_with_its_files_in_their_order(store: Store) -> None:
    with store.begin() as tx:
        assert tx.catalog.put_dataset_version(make_version()) is True
    with store.read() as tx:
        assert tx.catalog.dataset_versions("digits") == [make_version()]


def test_the_same_content_is_the_same_version(store: Store) -> None:
    with store.begin() as tx:
        tx.catalog.put_dataset_version(make_version(age_s=9))
        assert tx.catalog.put_dataset_version(make_version(age_s=0)) is False
        assert tx.catalog.put_dataset_version(make_version(dataset="other")) is True
    with store.read() as tx:
        assert tx.catalog.dataset_versions("digits") == [make_version(age_s=9)]


def test_the_same_content_at_another_place_is_the_same_version_which_lies_there_from_now_on(store: Store) -> None:
    with store.begin() as tx:
        tx.catalog.put_dataset_version(make_version(age_s=9))
        tx.catalog.put_dataset_version(make_version(dataset="other"))
        moved = replace(make_version(age_s=0), uri="s3://bucket/Ümzug 模型")
        assert tx.catalog.put_dataset_version(moved) is False
    with store.read() as tx:
        assert tx.catalog.dataset_versions("digits") == [replace(make_version(age_s=9), uri=moved.uri)]
        assert tx.catalog.dataset_versions("other") == [make_version(dataset="other")]


def test_versions_are_newest_first_and_have_files_only_when_the_dataset_is_named(store: Store) -> None:
    with store.begin() as tx:
        tx.catalog.put_dataset_version(make_version(1, age_s=5))
        tx.catalog.put_dataset_version(make_version(2, age_s=1, files=0))
        tx.catalog.put_dataset_version(make_version(3, age_s=9, dataset="other"))
    with store.read() as tx:
        everything = tx.catalog.dataset_versions()
        named = tx.catalog.dataset_versions("digits")
    assert [(version.checksum, version.files) for version in everything] == [
        ("sha256:2", ()),
        ("sha256:1", ()),
        ("sha256:3", ()),
    ]
    assert named == [make_version(2, age_s=1, files=0), make_version(1, age_s=5)]


def test_an_unknown_dataset_has_no_versions(store: Store) -> None:
    with store.read() as tx:
        assert tx.catalog.dataset_versions("nothing") == []
