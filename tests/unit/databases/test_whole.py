"""A database is there as a whole or not at all, whenever a process was killed."""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy.engine import create_engine

from thawline.databases import Condition, Schema, ensure_whole, sqlite_url
from thawline.exceptions import DatabaseError

REVISIONS = ("a1", "b2", "c3")


@dataclass
class Library:
    """A library with three migrations, whose package lies on the path."""

    schema: Schema
    cache: Path
    migrated: list[Path] = field(default_factory=list)


def written(database: Path, *statements: str) -> Path:
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return database


def at(revision: str) -> tuple[str, str]:
    return "CREATE TABLE alembic_version (version_num)", f"INSERT INTO alembic_version VALUES ('{revision}')"  # noqa: S608


def values(database: Path, question: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(question).fetchall()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    scripts = tmp_path / "site" / "shelves" / "migrations"
    scripts.mkdir(parents=True)
    (scripts.parent / "__init__.py").write_text("raise AssertionError('it is imported')")
    for revision, before in zip(REVISIONS, ("None", "'a1'", "'b2'"), strict=True):
        (scripts / f"{revision}.py").write_text(f"revision: str = '{revision}'\ndown_revision = {before}\n")
    metadata = tmp_path / "site" / "shelves-1.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shelves\nVersion: 1.5\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def migrate(file: Path) -> None:
        made.migrated.append(file)
        places = "CREATE TABLE places (name)", "INSERT INTO places VALUES ('default')"
        written(file, "CREATE TABLE books (title)", *places, *at("c3"))

    made = Library(Schema("Shelves", "shelves", "migrations", migrate), tmp_path / "cache" / "thawline" / "databases")
    return made


@pytest.fixture
def ensure(library: Library, own_home: Path) -> Callable[..., None]:
    return partial(ensure_whole, schema=library.schema, home=own_home, still_seconds=0.0)


def test_a_new_database_is_a_copy_of_a_template_that_is_migrated_once(
    library: Library, ensure: Callable[[Path], None], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        ensure(tmp_path / name / "shelves.db")
        assert library.schema.condition(tmp_path / name / "shelves.db") is Condition.WHOLE
    assert len(library.migrated) == 1
    assert [path.name for path in library.cache.iterdir() if path.suffix == ".db"] == ["shelves-1.5.db"]
    assert not [path for path in (tmp_path / "one").iterdir() if path.suffix == ".partial"]


def test_a_database_with_everything_is_not_touched(
    library: Library, ensure: Callable[[Path], None], tmp_path: Path
) -> None:
    database = written(tmp_path / "shelves.db", "CREATE TABLE books (title)", *at("c3"))
    before = database.read_bytes()
    ensure(database)
    assert database.read_bytes() == before
    assert library.migrated == []
    assert [path.name for path in tmp_path.glob("*shelves.db*")] == ["shelves.db"]


def test_a_user_without_a_home_directory_has_the_template_in_thawlines_home(
    library: Library, ensure: Callable[[Path], None], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    ensure(own_home / "shelves.db")
    assert (own_home / "cache" / "databases" / "shelves-1.5.db").is_file()


@pytest.mark.parametrize("killed_after", range(4))
def test_a_database_whose_making_was_killed_is_made_again(
    killed_after: int, library: Library, ensure: Callable[[Path], None], tmp_path: Path
) -> None:
    steps = (
        "CREATE TABLE books (title, shelf)",
        "CREATE TABLE _alembic_tmp_books (title)",
        "CREATE TABLE alembic_version (version_num)",
        "INSERT INTO alembic_version VALUES ('b2')",
    )
    database = written(tmp_path / "home" / "shelves.db", *steps[: killed_after + 1])
    ensure(database)
    assert library.schema.condition(database) is Condition.WHOLE
    assert values(database, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name") == [
        ("alembic_version",),
        ("books",),
        ("places",),
    ]
    assert values(database, "SELECT * FROM places") == [("default",)]


def test_an_older_database_with_something_in_it_is_left_to_the_library(
    library: Library, ensure: Callable[[Path], None], tmp_path: Path
) -> None:
    database = written(tmp_path / "shelves.db", "CREATE TABLE books (title)", *at("b2"))
    written(database, "INSERT INTO books VALUES ('Emma')")
    ensure(database)
    assert library.schema.condition(database) is Condition.OLDER
    assert values(database, "SELECT * FROM books") == [("Emma",)]


def test_another_programs_empty_tables_are_left_alone(
    library: Library, ensure: Callable[[Path], None], tmp_path: Path
) -> None:
    database = written(tmp_path / "notes.db", "CREATE TABLE notes (text)")
    ensure(database)
    assert values(database, "SELECT name FROM sqlite_master") == [("notes",)]


def test_a_migration_that_was_cut_short_over_records_is_reported(
    ensure: Callable[[Path], None], tmp_path: Path
) -> None:
    database = written(
        tmp_path / "shelves.db",
        *("CREATE TABLE books (title)", "INSERT INTO books VALUES ('Emma')", "CREATE TABLE _alembic_tmp_books (title)"),
        *at("b2"),
    )
    with pytest.raises(
        DatabaseError, match=r"shelves\.db by Shelves was interrupted, and it contains records \(books\)"
    ):
        ensure(database)
    assert values(database, "SELECT * FROM books") == [("Emma",)]


def test_a_newer_database_is_called_newer_with_what_to_do(ensure: Callable[[Path], None], tmp_path: Path) -> None:
    database = written(tmp_path / "shelves.db", "CREATE TABLE books (title)", *at("d4"))
    with pytest.raises(DatabaseError, match=r"newer version of Shelves than the installed 1\.5.*revision d4\. Install"):
        ensure(database)


def test_a_database_that_somebody_has_open_is_not_made_again_under_them(
    ensure: Callable[..., None], tmp_path: Path
) -> None:
    database = written(tmp_path / "shelves.db", "CREATE TABLE books (title)")
    with closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseError, match=r"database is locked\. Stop the programs that have it open"):
            ensure(database, busy_seconds=0.1)


def test_a_folder_that_cannot_be_written_is_reported(ensure: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match=r"Shelves's database .* cannot be created: .* set THAWLINE_HOME"):
        ensure(tmp_path / "file" / "shelves.db")


def test_a_template_that_was_damaged_is_made_again(
    library: Library, ensure: Callable[[Path], None], tmp_path: Path
) -> None:
    library.cache.mkdir(parents=True)
    (library.cache / "shelves-1.5.db").write_bytes(b"torn")
    ensure(tmp_path / "shelves.db")
    assert library.schema.condition(tmp_path / "shelves.db") is Condition.WHOLE


def test_a_killed_making_of_the_template_leaves_no_template(
    library: Library, ensure: Callable[[Path], None], tmp_path: Path
) -> None:
    def killed(file: Path) -> None:
        written(file, "CREATE TABLE books (title)")
        raise KeyboardInterrupt

    whole = library.schema.migrate
    object.__setattr__(library.schema, "migrate", killed)
    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path / "shelves.db")
    assert not (tmp_path / "shelves.db").exists()
    object.__setattr__(library.schema, "migrate", whole)
    ensure(tmp_path / "shelves.db")
    assert library.schema.condition(tmp_path / "shelves.db") is Condition.WHOLE


def test_many_that_begin_at_once_get_one_database(
    library: Library, ensure: Callable[[Path], None], tmp_path: Path
) -> None:
    database, begin, failures = tmp_path / "shelves.db", threading.Barrier(6), []

    def start(number: int) -> None:
        begin.wait()
        try:
            ensure(database)
            written(database, f"INSERT INTO books VALUES ('{number}')")  # noqa: S608
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert values(database, "SELECT count(*) FROM books") == [(6,)]
    assert len(library.migrated) == 1


def test_another_program_that_makes_the_database_now_is_waited_for(
    library: Library, own_home: Path, tmp_path: Path
) -> None:
    database = written(tmp_path / "shelves.db", "CREATE TABLE books (title)")
    finish = threading.Timer(0.5, lambda: written(database, "CREATE TABLE own (x)", *at("c3")))
    finish.start()
    ensure_whole(database, library.schema, home=own_home, still_seconds=5.0)
    finish.join()
    assert values(database, "SELECT name FROM sqlite_master WHERE name = 'own'") == [("own",)]


@pytest.mark.parametrize("name", ["plain", "question?mark", "hash#tag", "50% off", "per%3Fcent", "two words", "ü&=;"])
def test_a_file_of_any_name_has_a_url_that_opens_it(name: str, tmp_path: Path) -> None:
    database = tmp_path / name / "shelves.db"
    database.parent.mkdir()
    engine = create_engine(sqlite_url(database))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE books (title)")
    engine.dispose()
    assert values(database, "SELECT name FROM sqlite_master") == [("books",)]
    assert [path.name for path in tmp_path.iterdir()] == [name]
