"""What Alembic runs. The connection, its transaction and the lock belong to ``migrating.migrate``."""

from __future__ import annotations

from alembic import context

from fermion.adapters.sql.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
context.run_migrations()
