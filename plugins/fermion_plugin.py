"""What Airflow loads of Fermion. Every process and every task runs this file: it imports nothing that costs time.

Links and the web app are made only in the API server, which alone has ``AIRFLOW_API_APPS`` in its environment.
"""

from __future__ import annotations

import os
from typing import Any

from airflow.plugins_manager import AirflowPlugin


def _serves_pages() -> bool:
    apps = os.environ.get("AIRFLOW_API_APPS", "")
    return not {"all", "core"}.isdisjoint(apps.split(","))


def _links() -> list[Any]:
    from fermion_airflow.links import LINKS

    return list(LINKS)


def _apps() -> list[dict[str, Any]]:
    from fermion_airflow.api.app import make_app

    return [{"name": "fermion", "app": make_app(), "url_prefix": "/fermion"}]


def _middlewares() -> list[dict[str, Any]]:
    from fermion_airflow.api.door import Door

    return [{"name": "fermion requests", "middleware": Door}]


class FermionPlugin(AirflowPlugin):
    """Links from tasks to log, report and model, the pages that they open, and the door of requests for runs."""

    name = "fermion"
    operator_extra_links = _links() if _serves_pages() else []
    fastapi_apps = _apps() if _serves_pages() else []
    fastapi_root_middlewares = _middlewares() if _serves_pages() else []
