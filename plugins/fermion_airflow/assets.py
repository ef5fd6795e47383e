"""What the platform announces to other DAGs. One asset for all of a kind; an event's partition says which one is meant.

A DAG with ``schedule=PartitionedAssetTimetable(assets=MODELS)`` gets exactly one run for each version, also when several
come at once; ``dag_run.partition_key`` names it. The names are no URLs: for a URL's scheme Airflow would load every
provider's rules, 75 ms in each task of each DAG that mentions the asset.
"""

from __future__ import annotations

from airflow.sdk import Asset

DATASETS = Asset("fermion_datasets")
"""A dataset has a new version. Partition ``<dataset>@<checksum>``; extra ``versions`` (all of that round)."""

MODELS = Asset("fermion_models")
"""A model version was published. Partition ``<model>/<number>``; extra ``path``, ``checksum``, ``job``."""


def dataset_of(partition: str) -> tuple[str, str]:
    """(dataset, checksum) of a partition of ``DATASETS``."""
    dataset, _, checksum = partition.partition("@")
    return dataset, checksum
