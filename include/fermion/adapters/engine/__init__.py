"""The workflow engine, reached over Airflow's public REST interface (v2)."""

from fermion.adapters.engine.rest import RestRuns

__all__ = ["RestRuns"]
