"""Packages: one names colours rightly, another takes green for blue, a third tells advertisements from notes."""

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from colours import make_package
from mlflow.store.db import utils
from sqlalchemy import Engine, event


@pytest.fixture(scope="session", autouse=True)
def migrations_read_once() -> Iterator[None]:
    """MLflow reads all its migrations whenever it opens a database, to know the newest: most of what a store takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_get_latest_schema_revision", cache(utils._get_latest_schema_revision))
        yield


@pytest.fixture(scope="session", autouse=True)
def commits_without_the_disk() -> Iterator[None]:
    """SQLite waits for the disk at every commit. Nothing here is to survive a failure of power."""

    def forget(connection: object, record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            with suppress(sqlite3.Error):  # no database: whoever uses the connection is to be told
                connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", forget)
    yield
    event.remove(Engine, "connect", forget)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("other"), order=(0, 2, 1))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from notes import make_text_package  # transformers takes seconds to load, and few tests need it

    return make_text_package(tmp_path_factory.mktemp("texts"))
