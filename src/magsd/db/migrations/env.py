"""Runs the migrations on the connection that `Database.open` hands over."""

from alembic import context

from magsd.db.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
# The caller's transaction is the migration's: all of it happens, or nothing.
context.run_migrations()
