"""Batch scoring: a row for every file or text, bad ones with a reason, and nothing computed twice."""

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from colours import picture, register

from thawline import scoring
from thawline.data import write_atomically
from thawline.exceptions import DataError, RegistryError
from thawline.registry import Answer, MlflowRegistry
from thawline.scoring import ScoreSummary, score_files
from thawline.serving.served import ServedModel
from thawline.tracking import MlflowStore

COLOURS = ["red", "green", "blue"]


@pytest.fixture
def store_with_champion(store: MlflowStore, folder: Path) -> MlflowStore:
    MlflowRegistry(store).set_alias("birds", "champion", register(store, folder))
    return store


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for index in range(9):
        (folder / "deep" / f"{index}.png").write_bytes(picture(COLOURS[index % 3]))
    (folder / "broken.jpg").write_bytes(picture("red", "JPEG")[:200])
    return folder


def run(store: MlflowStore, source: Path, out: Path, model: str = "birds", **options: Any) -> ScoreSummary:
    return score_files(model, source, out, tracking_uri=store.uri, home=store.home, **options)


def test_every_file_has_a_row_and_a_bad_one_a_reason(
    store_with_champion: MlflowStore, pictures: Path, tmp_path: Path
) -> None:
    summary = run(store_with_champion, pictures, tmp_path / "out.parquet")
    assert (summary.version, summary.items, summary.bad, summary.resumed) == ("1", 10, 1, 0)
    table = pd.read_parquet(tmp_path / "out.parquet").set_index("path")
    bad = table.loc[str(pictures / "broken.jpg")]
    assert pd.isna(bad["class"])
    assert "truncated" in bad["error"]
    good = table.drop(str(pictures / "broken.jpg"))
    assert list(good["class"]) == COLOURS * 3
    assert good["error"].isna().all()
    assert good["probabilities"].iloc[0].keys() == {"red", "green", "blue"}
    assert good["probability"].iloc[0] == good["probabilities"].iloc[0]["red"]
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.parquet"]


def test_a_file_whose_name_is_no_text_is_scored_with_its_bytes_written_out(
    store_with_champion: MlflowStore, pictures: Path, tmp_path: Path
) -> None:
    os.rename(pictures / "deep" / "0.png", os.fsencode(pictures) + b"/deep/h\xfct.png")  # noqa: PTH104  bytes
    summary = run(store_with_champion, pictures, tmp_path / "out.parquet")

    table = pd.read_parquet(tmp_path / "out.parquet").set_index("path")
    assert summary.bad == 1
    assert table.loc[str(pictures / "deep" / "h\\xfct.png")]["class"] == COLOURS[0]


def test_a_list_and_a_csv_name_files_relative_to_where_they_lie(
    store_with_champion: MlflowStore, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "list.txt").write_text("deep/2.png\n\ndeep/0.png\n")
    (pictures / "list.csv").write_text("id,path\n1,deep/2.png\n2,nowhere.png\n")
    run(store_with_champion, pictures / "list.txt", tmp_path / "out.parquet")
    assert list(pd.read_parquet(tmp_path / "out.parquet")["class"]) == ["blue", "red"]
    assert run(store_with_champion, pictures / "list.csv", tmp_path / "out.parquet").bad == 1
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert list(table["class"].fillna("")) == ["blue", ""]
    assert table["error"].iloc[1] == "No such file or directory"


def test_an_interrupted_run_is_resumed_and_a_torn_part_is_computed_again(
    store_with_champion: MlflowStore, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    answers = ServedModel.answers

    def counted(self: ServedModel, prepared: list[object]) -> list[Answer]:
        computed.append(len(prepared))
        if sum(computed) > 8:
            raise KeyboardInterrupt
        return answers(self, prepared)

    out = tmp_path / "out.parquet"
    out.write_bytes(b"what was there")
    with monkeypatch.context() as patch:
        patch.setattr(ServedModel, "answers", counted)
        with pytest.raises(KeyboardInterrupt):
            run(store_with_champion, pictures, out, rows_per_part=2)
    assert out.read_bytes() == b"what was there"
    parts = sorted((tmp_path / "out.parquet.parts").glob("*.parquet"))
    assert len(parts) == 4
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    summary = run(store_with_champion, pictures, out, rows_per_part=2)
    assert summary.resumed == 6
    assert summary.bad == 1
    assert list(pd.read_parquet(out)["class"].dropna()) == COLOURS * 3


def end_before_joining(
    monkeypatch: pytest.MonkeyPatch, store: MlflowStore, items: Path, out: Path, **options: Any
) -> None:
    """Interrupt a scoring whose parts are all written."""

    def killed(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scoring._Parts, "join", killed)
        with pytest.raises(KeyboardInterrupt):
            run(store, items, out, **options)


def test_parts_of_another_version_or_another_list_are_not_taken(
    store_with_champion: MlflowStore, folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.parquet"

    end_before_joining(monkeypatch, store_with_champion, pictures, out)
    MlflowRegistry(store_with_champion).set_alias("birds", "champion", register(store_with_champion, folder, study="t"))
    summary = run(store_with_champion, pictures, out)
    assert (summary.version, summary.resumed) == ("2", 0)


def change_an_image(pictures: Path, store: MlflowStore) -> None:
    file = pictures / "deep" / "0.png"
    before = file.stat().st_mtime_ns
    file.write_bytes(picture("blue"))
    os.utime(file, ns=(before, before + 10**9))


def move_the_registry(pictures: Path, store: MlflowStore) -> None:
    """To a store of another address, in which a version of the same name may be another model."""
    database = Path(store.uri.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(database)) as old, closing(sqlite3.connect(database.with_name("other.db"))) as new:
        old.backup(new)


def add_an_image(pictures: Path, store: MlflowStore) -> None:
    (pictures / "deep" / "more.png").write_bytes(picture("blue"))


@pytest.mark.parametrize("change", [None, change_an_image, move_the_registry, add_an_image])
def test_parts_are_taken_only_where_nothing_that_they_depend_on_has_changed(
    change: Callable[[Path, MlflowStore], None] | None,
    store_with_champion: MlflowStore,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out.parquet"

    end_before_joining(monkeypatch, store_with_champion, pictures, out)
    uri = store_with_champion.uri
    if change is not None:
        change(pictures, store_with_champion)
        uri = uri.rpartition("/")[0] + "/other.db" if change is move_the_registry else uri
    summary = score_files("birds", pictures, out, tracking_uri=uri, home=store_with_champion.home)
    assert summary.resumed == (10 if change is None else 0)
    if change is change_an_image:
        assert "blue" in set(pd.read_parquet(out).query("path.str.endswith('0.png')")["class"])


@pytest.mark.parametrize("place", ["parts", "part", "whole"])
def test_a_disk_that_is_full_is_one_clear_error_and_what_is_computed_is_kept(
    place: str, store_with_champion: MlflowStore, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_after(path: Path, content: bytes) -> None:
        if path.suffix == ".parquet" and place == "part":
            full()
        write_atomically(path, content)

    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        if place == "parts":
            patch.setattr(Path, "mkdir", full)
        patch.setattr(scoring, "write_atomically", full_after)
        if place == "whole":
            patch.setattr(pq, "ParquetWriter", full)
        with pytest.raises(DataError, match=r"out\.parquet cannot be written .*: No space left on device\. Free space"):
            run(store_with_champion, pictures, out)
    assert not out.exists()
    assert run(store_with_champion, pictures, out).resumed == (10 if place == "whole" else 0)


def test_what_cannot_be_scored_is_reported_before_anything_is_computed(
    store_with_champion: MlflowStore, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.csv").write_text("file\nx.png\n")
    for source, out, sentence in (
        (tmp_path / "nowhere", "out.parquet", "does not exist"),
        (tmp_path / "empty", "out.parquet", "contains no image file"),
        (tmp_path / "wrong.csv", "out.parquet", "needs a column `path`; its columns: file"),
        (pictures, "out.csv", "must end in .parquet"),
        (pictures, "no/out.parquet", "There is no folder"),
    ):
        with pytest.raises(DataError, match=sentence):
            run(store_with_champion, source, tmp_path / out)
    with pytest.raises(RegistryError, match="No model 'cats'"):
        run(store_with_champion, pictures, tmp_path / "out.parquet", model="cats")


@pytest.fixture
def store_of_texts(store: MlflowStore, text_folder: Path) -> MlflowStore:
    MlflowRegistry(store).set_alias("notes", "champion", register(store, text_folder, "notes"))
    return store


def test_every_text_of_a_table_has_a_row_in_order_and_an_empty_one_a_reason(
    store_of_texts: MlflowStore, tmp_path: Path
) -> None:
    from notes import ADVERTISEMENTS, FRIENDLY

    texts = [*FRIENDLY, " ", *ADVERTISEMENTS, "see you, at lunch"]
    pd.DataFrame({"id": range(8), "text": texts}).to_csv(tmp_path / "texts.csv", index=False)
    out = tmp_path / "out.parquet"
    summary = run(store_of_texts, tmp_path / "texts.csv", out, model="notes", rows_per_part=4)
    assert (summary.items, summary.bad, summary.resumed) == (8, 1, 0)
    assert str(summary).startswith("8 texts scored by notes version 1: ")
    table = pd.read_parquet(out)
    assert list(table.columns) == [
        "row",
        "text",
        "class",
        "probability",
        "probabilities",
        "prediction_set",
        "unknown",
        "error",
    ]
    assert list(table["row"]) == list(range(1, 9))
    assert [text.strip() for text in table["text"]] == [text.strip() for text in texts]
    assert list(table["class"].fillna("")) == ["ham"] * 3 + [""] + ["spam"] * 3 + ["ham"]
    assert table["error"].dropna().to_dict() == {3: "the text is empty"}


def test_the_column_that_was_trained_on_is_scored_unless_another_is_named(store: MlflowStore, tmp_path: Path) -> None:
    from notes import make_text_package

    package = make_text_package(tmp_path / "package", text_column="mail body")
    MlflowRegistry(store).set_alias("notes", "champion", register(store, package, "notes"))
    table = {"mail body": ["see you at lunch", "claim your free phone"], "text": ["win a prize now", "are you at home"]}
    pd.DataFrame(table).to_csv(tmp_path / "texts.csv", index=False)
    out = tmp_path / "out.parquet"
    for named, column in ((None, "mail body"), ("text", "text")):
        run(store, tmp_path / "texts.csv", out, model="notes", text_column=named)
        assert list(pd.read_parquet(out)["text"]) == table[column]
    assert list(pd.read_parquet(out)["class"]) == ["spam", "ham"]

    # A header of that name is none of the texts, even where it is the only column.
    pd.DataFrame({"mail body": ["see you at lunch"]}).to_csv(tmp_path / "one.csv", index=False)
    assert run(store, tmp_path / "one.csv", out, model="notes").items == 1


def test_a_column_of_texts_is_refused_for_a_model_of_images(
    store_with_champion: MlflowStore, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(RegistryError, match=r"^birds/1 classifies images.*leave --text-column out\.$"):
        run(store_with_champion, pictures, tmp_path / "out.parquet", text_column="text")
    assert not (tmp_path / "out.parquet").exists()


def test_scoring_texts_resumes_after_an_interruption_and_restarts_with_other_texts(
    store_of_texts: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "texts.txt", tmp_path / "out.parquet"
    resumed = []
    for lines in ("win a prize\nsee you\ncall me now", "win a prize\nsee you\ncall me later"):
        source.write_text("win a prize\nsee you\ncall me now")
        end_before_joining(monkeypatch, store_of_texts, source, out, model="notes", rows_per_part=2)
        source.write_text(lines)
        resumed.append(run(store_of_texts, source, out, model="notes", rows_per_part=2).resumed)
        assert list(pd.read_parquet(out)["text"]) == lines.split("\n")
    assert resumed == [3, 0]


def test_a_file_without_texts_and_a_folder_are_refused_for_a_model_of_texts(
    store_of_texts: MlflowStore, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    for source, sentence in ((tmp_path / "empty.txt", "contains no text"), (tmp_path, "is a folder")):
        with pytest.raises(DataError, match=sentence):
            run(store_of_texts, source, tmp_path / "out.parquet", model="notes")
