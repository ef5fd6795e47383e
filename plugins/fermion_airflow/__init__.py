"""Fermion inside Airflow: operators, triggers, hooks, API and pages. Each calls one use case; none holds a rule."""
