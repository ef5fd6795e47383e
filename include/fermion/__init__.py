"""Fermion's platform: quota, queue, ledger, pipelines and rollout decisions. It knows nothing of Airflow."""
