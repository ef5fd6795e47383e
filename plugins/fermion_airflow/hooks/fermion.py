"""The platform as Airflow's tasks and triggers reach it: its database is the Airflow connection ``fermion_db``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.hook import BaseHook

if TYPE_CHECKING:
    from fermion.usecases.context import Context

CONN_ID = "fermion_db"


def database_url(connection: Any) -> str:
    """The SQLAlchemy URL of a connection: its extra ``sqlalchemy_url`` where given, else built from its fields."""
    url = connection.extra_dejson.get("sqlalchemy_url")
    if url:
        return str(url)
    from sqlalchemy.engine import URL

    return URL.create(
        "postgresql+psycopg",
        username=connection.login,
        password=connection.password,
        host=connection.host,
        port=connection.port,
        database=connection.schema or "fermion",
    ).render_as_string(hide_password=False)


class FermionHook(BaseHook):
    """Opens the platform once per process. Tasks call ``platform``; triggers await ``aplatform``."""

    conn_name_attr = "fermion_conn_id"
    default_conn_name = CONN_ID
    conn_type = "generic"
    hook_name = "Fermion"

    def __init__(self, fermion_conn_id: str = CONN_ID) -> None:
        super().__init__()
        self.fermion_conn_id = fermion_conn_id

    def platform(self) -> Context:
        """The use cases' context, from a task."""
        return _build(database_url(self.get_connection(self.fermion_conn_id)))

    async def aplatform(self) -> Context:
        """The use cases' context, from a trigger; never blocks the event loop."""
        import asyncio

        connection = await self.aget_connection(self.fermion_conn_id)
        return await asyncio.to_thread(_build, database_url(connection))


def _build(url: str) -> Context:
    from fermion.wiring import build

    return build(database_url=url, secrets=_secret_of)


def _secret_of(connection_id: str) -> tuple[str, str] | None:
    """Login and password of an Airflow connection; None when it holds none."""
    connection = BaseHook.get_connection(connection_id)
    return (connection.login, connection.password) if connection.login and connection.password else None
