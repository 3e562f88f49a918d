"""Prefect's database is there before its server starts."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from thawline.databases import PREFECT, Condition, prefect_database
from thawline.exceptions import DatabaseError


def test_a_new_database_is_what_prefects_own_migration_makes_and_a_newer_one_is_called_newer(own_home: Path) -> None:
    database = prefect_database(own_home / "prefect", home=own_home)
    assert database == own_home / "prefect" / "prefect.db"
    assert PREFECT.condition(database) is Condition.WHOLE
    with closing(sqlite3.connect(database)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert {"flow_run", "task_run", "deployment", "work_pool", "log"} <= tables
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        connection.commit()
    with pytest.raises(DatabaseError, match=rf"newer version of Prefect than the installed {PREFECT.version}"):
        prefect_database(own_home / "prefect", home=own_home)


def test_prefect_itself_finds_nothing_left_to_migrate() -> None:
    from alembic.script import ScriptDirectory
    from prefect.server.database.alembic_commands import alembic_config

    config = alembic_config()
    folder = Path(str(config.config_file_name)).parent / "_migrations"
    directory = ScriptDirectory(str(folder), version_locations=[str(folder / "versions" / "sqlite")])
    assert PREFECT.head == directory.get_current_head()
    assert PREFECT.revisions == {script.revision for script in directory.walk_revisions()}
