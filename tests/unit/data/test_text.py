"""Tables of texts in their usual forms, and everything that can be wrong with one."""

import csv
import json
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rendered import rendered

from thawline.cli.tables.data import data_report
from thawline.config import DataConfig
from thawline.data import (
    Manifest,
    _tables,
    check_data,
    data_kind,
    data_location,
    given_texts,
    labelled_texts,
    normalized,
    report_json,
    scan,
    texts_of,
)
from thawline.exceptions import DataError

Row = tuple[str, ...]
LENIENT = {"max_bad_fraction": 0.5}


def rows(count: int = 40, *, first: int = 0) -> list[Row]:
    """(label, text): distinct texts of two classes, enough that every split gets some of each."""
    return [(("ham", "spam")[n % 2], f"message number {n} of many") for n in range(first, first + count)]


def read(path: Path, **options: Any) -> Manifest:
    return scan(DataConfig(path=path, **options))


def reasons(manifest: Manifest, kind: str) -> dict[str, str]:
    return {problem.path: problem.reason for problem in manifest.problems if problem.kind == kind}


def contents(manifest: Manifest) -> dict[str, tuple[str, str]]:
    """Text and class of each row by its path."""
    texts = texts_of(manifest, manifest.rows)
    return {row.path: (text, manifest.classes[row.label]) for row, text in zip(manifest.rows, texts, strict=True)}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a table; the first row may be a header. Text and bytes are written as they are."""

    def make(name: str, content: str | bytes | Iterable[Sequence[str]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, delimiter="\t" if name.endswith(".tsv") else ",").writerows(content)
        return path

    return make


Write = Callable[..., Path]

# ----------------------------------------------------------------------------------------------------------- formats


def test_a_csv_with_usual_names_is_split_by_content(write: Write) -> None:
    manifest = read(write("mails.csv", [("label", "text"), *rows()]))

    assert manifest.kind == "texts"
    assert manifest.name == "mails"
    assert manifest.classes == ("ham", "spam")
    assert {row.split for row in manifest.rows} == {"train", "validation", "test"}
    assert manifest.problems == ()
    assert contents(manifest)["mails.csv:2"] == ("message number 0 of many", "ham")
    assert contents(manifest)["mails.csv:41"] == ("message number 39 of many", "spam")
    assert "text in column text (by its name)" in manifest.layout
    assert "split off by content" in manifest.layout


def test_every_format_gives_the_same_data(write: Write, tmp_path: Path) -> None:
    frame = pd.DataFrame(rows(), columns=["label", "text"])
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "with_index.csv")
    frame.to_csv(tmp_path / "semicolons.csv", index=False, sep=";")
    frame.to_csv(tmp_path / "bom.csv", index=False, encoding="utf-8-sig")
    frame.to_csv(tmp_path / "dos.csv", index=False, lineterminator="\r\n")
    frame.to_csv(tmp_path / "a.TSV", index=False, sep="\t")
    frame.to_csv(tmp_path / "no_header.tsv", index=False, header=False, sep="\t")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.astype({"label": "category"}).to_parquet(tmp_path / "category.parquet")

    manifests = {path.name: read(path) for path in sorted(tmp_path.iterdir()) if path.is_file()}

    assert len(manifests) == 10
    assert len({manifest.digest for manifest in manifests.values()}) == 1
    assert contents(manifests["a.parquet"])["a.parquet:1"] == ("message number 0 of many", "ham")
    assert read(write("b.csv", [("label", "text"), *rows(39)])).digest != manifests["a.csv"].digest


def test_class_names_of_huggingface_stand_for_their_numbers(tmp_path: Path) -> None:
    features = {"label": {"names": ["ham", "spam"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}
    table = pa.table({"text": [text for _, text in rows()], "label": [n % 2 for n in range(40)]})
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table, tmp_path / "plain.parquet")
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "named.parquet")

    assert read(tmp_path / "named.parquet").classes == ("ham", "spam")
    assert read(tmp_path / "plain.parquet").classes == ("0", "1")


def huggingface(table: pa.Table, features: dict[str, Any], path: Path) -> Path:
    """Write the table as Hugging Face's datasets do, with a description of its features."""
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


CLASS_LABEL = {"names": ["ham", "spam"], "_type": "ClassLabel"}


@pytest.mark.parametrize("dtype", [pa.float64(), pa.float32(), pa.int8(), pa.uint16()])
def test_class_names_stand_for_numbers_of_any_type(tmp_path: Path, dtype: pa.DataType) -> None:
    table = pa.table({"text": [text for _, text in rows()], "label": pa.array([n % 2 for n in range(40)], dtype)})
    manifest = read(huggingface(table, {"label": CLASS_LABEL}, tmp_path / "a.parquet"))

    assert manifest.classes == ("ham", "spam")
    assert contents(manifest)["a.parquet:2"][1] == "spam"


def test_numbers_for_which_no_class_is_named_are_bad_rows(tmp_path: Path) -> None:
    labels: list[float | None] = [n % 2 for n in range(40)]
    labels[:5] = [-1, None, 7, 0.5, float("nan")]
    table = pa.table({"text": [text for _, text in rows()], "label": pa.array(labels, pa.float64())})

    found = reasons(read(huggingface(table, {"label": CLASS_LABEL}, tmp_path / "a.parquet"), **LENIENT), "bad")

    assert found["a.parquet:1"] == found["a.parquet:2"] == found["a.parquet:5"] == "the label is missing"
    assert found["a.parquet:3"] == "the label is number 7, but the file has class names for the numbers 0 to 1"
    assert found["a.parquet:4"] == "the label is 0.5, but the file has class names for the numbers 0 to 1"


@pytest.mark.parametrize(
    "feature",
    [
        [CLASS_LABEL],
        {"feature": CLASS_LABEL, "_type": "List"},
        {"feature": CLASS_LABEL, "length": -1, "_type": "Sequence"},
        {"feature": [CLASS_LABEL], "_type": "LargeList"},
    ],
)
def test_several_labels_a_row_are_refused_with_what_is_needed(tmp_path: Path, feature: Any) -> None:
    table = pa.table({"text": [text for _, text in rows()], "label": [[n % 2, 1] for n in range(40)]})
    path = huggingface(table, {"label": feature, "text": {"_type": "Value"}}, tmp_path / "a.parquet")

    with pytest.raises(DataError, match="a list of labels, but each row needs one"):
        read(path)


@pytest.mark.parametrize(
    "other", [[{"_type": "Value", "dtype": "string"}], [], "text", None, {"_type": "ClassLabel"}, {"names": 3}]
)
def test_one_feature_in_another_form_does_not_cost_the_class_names(tmp_path: Path, other: Any) -> None:
    table = pa.table({"text": [text for _, text in rows()], "label": [n % 2 for n in range(40)], "tags": [["a"]] * 40})
    path = huggingface(table, {"tags": other, "label": CLASS_LABEL}, tmp_path / "a.parquet")

    assert read(path).classes == ("ham", "spam")


def test_a_column_that_parquet_names_twice_is_refused_in_words_of_ours(tmp_path: Path) -> None:
    texts, labels = [text for _, text in rows()], [label for label, _ in rows()]
    pq.write_table(
        pa.Table.from_arrays([pa.array(texts)] * 2 + [pa.array(labels)], ["text", "text", "label"]),
        tmp_path / "a.parquet",
    )

    with pytest.raises(DataError, match=r"a\.parquet names the column 'text' twice: rename one of them\.$"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([True, False], ("false", "true")), ([1.0, 2.0], ("1", "2")), ([1, 2], ("1", "2")), ([0.5, 1.5], ("0.5", "1.5"))],
)
def test_labels_that_are_no_texts_are_called_the_same_in_every_format(
    tmp_path: Path, labels: list[Any], expected: tuple[str, ...]
) -> None:
    frame = pd.DataFrame({"label": [labels[n % 2] for n in range(40)], "text": [text for _, text in rows()]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")

    manifests = [read(tmp_path / name) for name in ("a.csv", "a.jsonl", "a.parquet")]

    assert [manifest.classes for manifest in manifests] == [expected] * 3
    assert len({manifest.digest for manifest in manifests}) == 1


def test_labels_that_only_look_like_numbers_or_booleans_keep_their_names(write: Write) -> None:
    table = [("label", "text"), *((("1.0", "2.0", "beta")[n % 3], text) for n, (_, text) in enumerate(rows(60)))]
    assert read(write("a.csv", table)).classes == ("1.0", "2.0", "beta")
    table = [("label", "text"), *((("True", "False", "Both")[n % 3], text) for n, (_, text) in enumerate(rows(60)))]
    assert read(write("b.csv", table)).classes == ("Both", "False", "True")
    table = [("label", "text"), *((("007", "7")[n % 2], text) for n, (_, text) in enumerate(rows(60)))]
    assert read(write("c.csv", table)).classes == ("007", "7")


def test_a_label_that_reads_nan_is_said_to_and_what_to_do(write: Write) -> None:
    manifest = read(write("a.csv", [("label", "text"), ("nan", "an Indian bread"), *rows()]))

    assert reasons(manifest, "bad")["a.csv:2"] == (
        "the label is missing: it is nan, pandas' missing value. A class with this name needs "
        "another one, such as not-a-number"
    )


@pytest.mark.parametrize("other", ["Ham", "\uff48am", "ha\u200bm", "HAM"])
def test_labels_that_look_alike_are_named_together(write: Write, other: str) -> None:
    table = [*rows(), *((other, f"another {n} of many") for n in range(30))]
    manifest = read(write("a.csv", [("label", "text"), *table]))

    (found,) = [path for path, reason in reasons(manifest, "class").items() if "are they the same?" in reason]
    assert set(found.split(" | ")) == {"ham", other}
    assert manifest.classes == tuple(sorted(["ham", "spam", other]))
    assert "are they the same?" not in rendered(data_report(read(write("b.csv", [("label", "text"), *rows()]))))


def test_groups_in_two_unicode_forms_are_one_group(write: Write) -> None:
    names = ("Jos\u00e97", "Jose\u03017")
    table = [("label", "text", "author"), *((*row, names[n % 2]) for n, row in enumerate(rows(20)))]
    table += [(*row, f"author {n}") for n, row in enumerate(rows(100, first=20))]
    manifest = read(write("a.csv", table), group_column="author")

    assert len({row.split for row in manifest.rows if row.group == "Jos\u00e97"}) == 1
    assert sum(row.group == "Jos\u00e97" for row in manifest.rows) == 20
    shown = " ".join(rendered(data_report(manifest)).split())
    assert "Groups: 101, of at most 20 texts; each is kept in one split" in shown
    assert report_json(manifest)["groups"] == 101


def test_texts_may_span_lines_and_be_longer_than_csv_itself_allows(write: Write) -> None:
    long = "word " * 40_000
    manifest = read(write("a.csv", [("label", "text"), ("ham", "two\nlines"), ("spam", long), *rows()]))

    found = contents(manifest)
    assert found["a.csv:2"][0] == "two lines"
    assert found["a.csv:4"][0] == long.strip()
    assert found["a.csv:5"][0] == "message number 0 of many"
    assert csv.field_size_limit() == 131_072  # of other code in this process


def test_threads_that_read_tables_do_not_put_back_the_limit_of_each_other() -> None:
    entered, leave = threading.Event(), threading.Event()
    limits: list[int] = []

    def read_long_cells() -> None:
        with _tables._long_cells():
            entered.set()
            leave.wait(30)
            limits.append(csv.field_size_limit())

    with _tables._long_cells():
        thread = threading.Thread(target=read_long_cells)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(30)
    leave.set()
    thread.join(30)
    assert limits[0] > 131_072
    assert csv.field_size_limit() == 131_072


def test_stray_quotes_in_a_tsv_are_taken_literally(write: Write) -> None:
    lines = [f"{label}\t{text}" for label, text in rows()]
    lines[3] = 'spam\t"Hello" she said'
    lines[9] = 'spam\t"never closed'
    manifest = read(write("a.tsv", "\n".join(lines)))

    assert contents(manifest)["a.tsv:4"][0] == '"Hello" she said'
    assert contents(manifest)["a.tsv:10"][0] == '"never closed'
    assert len(manifest.rows) == 40
    assert "quotation marks are taken literally" in manifest.layout


def test_two_stray_quotes_do_not_swallow_the_lines_between_them(write: Write) -> None:
    lines = [f"{label}\t{text}" for label, text in rows()]
    lines[3] = 'spam\t"begins'
    lines[30] = 'ham\tends"'
    manifest = read(write("a.tsv", "\n".join(lines)))

    assert len(manifest.rows) == 40
    assert contents(manifest)["a.tsv:4"][0] == '"begins'


def test_quotes_in_a_tsv_that_is_well_formed_with_them_are_quotes(write: Write) -> None:
    manifest = read(write("a.tsv", [("label", "text"), ("ham", 'a "quoted"\ttab'), ("spam", "two\nlines"), *rows()]))

    assert contents(manifest)["a.tsv:2"][0] == 'a "quoted" tab'
    assert contents(manifest)["a.tsv:3"][0] == "two lines"
    assert len(manifest.rows) == 42


def test_a_folder_of_tables_is_its_splits(write: Write) -> None:
    for number, name in enumerate(("train", "val", "Test")):
        path = write(f"mails/{name}.csv", [("text", "label"), *((t, y) for y, t in rows(6, first=10 * number))])
    manifest = read(path.parent)

    assert {(row.path.split(":")[0], row.split) for row in manifest.rows} == {
        ("train.csv", "train"),
        ("val.csv", "validation"),
        ("Test.csv", "test"),
    }
    assert manifest.name == "mails"
    assert contents(manifest)["val.csv:2"] == ("message number 10 of many", "ham")
    assert "splits train.csv, val.csv, Test.csv" in manifest.layout


def test_a_folder_with_one_table_is_that_table_and_with_images_it_is_none(
    write: Write, picture: Callable[[int], bytes]
) -> None:
    folder = write("mails/all.csv", [("label", "text"), *rows()]).parent
    assert read(folder).digest == read(folder / "all.csv").digest

    assert data_kind(DataConfig(path=folder)) == "texts"

    write("mails/1.png", picture(1))
    assert data_kind(DataConfig(path=folder)) == "images"
    (folder / "1.png").unlink()
    write("mails/cat/1.png", picture(1))
    assert data_kind(DataConfig(path=folder)) == "images"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("mails.csv", "more.csv"), r"contains the tables mails.csv, more.csv. Give one of them"),
        (("test.csv", "val.csv"), "no table named train"),
        (("train.csv", "train.tsv"), "one of each"),
    ],
)
def test_a_folder_whose_tables_cannot_be_told_apart_is_refused(
    write: Write, names: tuple[str, ...], words: str
) -> None:
    for name in names:
        path = write(f"mails/{name}", [("label", "text"), *rows()])
    with pytest.raises(DataError, match=words):
        read(path.parent)


# ----------------------------------------------------------------------------------------------------------- columns


def test_columns_of_other_names_are_found_by_their_content(write: Write) -> None:
    table = [("id", "v1", "link", "v2"), *((str(n), y, f"https://x.org/{n:09}", t) for n, (y, t) in enumerate(rows()))]
    manifest = read(write("a.csv", table))

    assert manifest.table is not None
    assert (manifest.table.text_column, manifest.table.label_column, manifest.table.header) == ("v2", "v1", True)
    assert manifest.table.text_name == "v2"
    assert "label in column v1 (by its content), text in column v2 (by its content)" in manifest.layout
    assert len(manifest.rows) == 40


def test_columns_that_could_be_either_are_an_error_that_the_named_option_resolves(write: Write) -> None:
    table = [("title", "content", "message", "label"), *((t[8:], t, t[::-1], y) for y, t in rows())]
    path = write("a.csv", table)

    with pytest.raises(DataError, match=r"is the text: several columns match: content, message.*data\.text_column="):
        read(path)
    assert contents(read(path, text_column="message"))["a.csv:2"][0] == "message number 0 of many"[::-1]


def test_a_table_without_labels_says_so(write: Write) -> None:
    path = write("a.csv", [("id", "text"), *((str(n), t) for n, (_, t) in enumerate(rows()))])
    with pytest.raises(DataError, match=r"is the label: no column matches. The columns are: id, text\."):
        read(path)


def test_numbers_name_the_columns_of_a_table_without_header(write: Write) -> None:
    path = write("a.csv", [(t, str(n % 2), y) for n, (y, t) in enumerate(rows())])
    with pytest.raises(DataError, match=r"label: several columns match: 2, 3. There is no header line"):
        read(path)

    assert read(path, label_column=3).classes == ("ham", "spam")  # as --set data.label_column=3 gives it
    assert read(path, label_column="2").classes == ("0", "1")
    with pytest.raises(DataError, match=r"data.label_column='4' is not a column of a.csv"):
        read(path, label_column="4")


def test_a_first_line_that_recurs_below_is_no_header(write: Write) -> None:
    table = [("question", "what is the first text"), *(("question", f"what is {n}") for n in range(20))]
    manifest = read(write("a.csv", [*table, *(("text", f"this is {n}") for n in range(20))]))

    assert len(manifest.rows) == 41
    assert manifest.classes == ("question", "text")
    assert "no header line" in manifest.layout
    assert manifest.table is not None
    assert manifest.table.text_name is None


def test_whether_there_is_a_header_can_be_said_where_it_cannot_be_seen(write: Write) -> None:
    unseen = write("a.csv", [("kind_of_mail", "mail body"), *(("note", t) for _, t in rows(20)), *rows(20, first=20)])
    write("b.csv", [("ham", "label"), *rows()])  # the name of a class, and a text that is a usual name

    assert len(read(unseen).rows) == len(read(unseen, header=True).rows) == 40
    assert len(read(write("c.csv", [("ham", "body_of_mail"), *rows()])).rows) == 41
    named = read(write("c.csv", [("ham", "body_of_mail"), *rows()]), header=True)
    assert (len(named.rows), named.table and named.table.text_column) == (40, "body_of_mail")
    assert len(read(unseen.with_name("b.csv"), text_column="label").rows) == 40
    assert len(read(unseen.with_name("b.csv"), header=False).rows) == 41
    assert texts_of(named, named.rows)  # the file is read as it was scanned


def test_a_format_that_always_names_its_columns_cannot_be_without_a_header(write: Write) -> None:
    path = write("a.jsonl", "\n".join(json.dumps({"label": label, "text": text}) for label, text in rows()))

    assert len(read(path, header=True).rows) == 40
    with pytest.raises(DataError, match=r"data\.header=False cannot be set for a\.jsonl"):
        read(path, header=False)
    assert len(labelled_texts(path, DataConfig(path=path, header=False))[0]) == 40  # said of the table to train on


def test_a_column_named_twice_or_given_two_parts_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="names the column 'text' twice"):
        read(write("a.csv", [("text", "text"), *rows()]))
    with pytest.raises(DataError, match="cannot have two roles: text in column text, label in column text"):
        read(write("b.csv", [("label", "text"), *rows()]), text_column="text", label_column="text")


def test_labels_that_are_all_different_are_questioned(write: Write) -> None:
    path = write("a.csv", [("label", "text"), *((t[::-1], t) for _, t in rows())])
    with pytest.raises(DataError, match=r"Column label .* 40 different labels for 40 texts.*data.label_column="):
        read(path)


def test_one_label_is_too_few(write: Write) -> None:
    with pytest.raises(DataError, match=r"only one label \(ham\).*at least two"):
        read(write("a.csv", [("label", "text"), *(("ham", t) for _, t in rows())]))


# --------------------------------------------------------------------------------------------------------- bad rows


def test_every_bad_row_is_named_by_its_line_and_left_out(write: Write) -> None:
    lines = [b"label,text", *(f"{label},{text}".encode() for label, text in rows())]
    lines[2:9] = [
        "ham,caf\u00e9".encode("latin-1"),
        b"ham,   ",
        b"ham,",
        b",no label",
        b"  ,no label either",
        b"ham,one,too many",
        b'ham,"quote" in the wrong place',
    ]
    manifest = read(write("a.csv", b"\n".join(lines)), **LENIENT)

    assert reasons(manifest, "bad") == {
        "a.csv:3": "the text is not UTF-8: byte 0xE9 at character 4",
        "a.csv:4": "the text is empty",
        "a.csv:5": "the text is empty",
        "a.csv:6": "the label is missing",
        "a.csv:7": "the label is missing",
        "a.csv:8": "the line has 3 fields, the first line has 2",
        "a.csv:9": "the line is malformed: ',' expected after '\"'",
    }
    assert len(manifest.rows) == 33
    assert list(reasons(manifest, "bad")) == [f"a.csv:{line}" for line in range(3, 10)]


def test_every_bad_json_line_is_named(write: Write) -> None:
    lines = [json.dumps({"text": text, "label": label}) for label, text in rows()]
    lines[:8] = [
        '{"text": "cut off',
        '["a list"]',
        '{"text": ["nested"], "label": "ham"}',
        '{"text": "nested label", "label": {"a": 1}}',
        '{"text": "half a pair \\ud83d", "label": "ham"}',
        '{"text": "no label"}',
        '{"text": "not a number", "label": NaN}',
        "",
    ]
    manifest = read(write("a.jsonl", "\n".join(lines)), **LENIENT)

    found = reasons(manifest, "bad")
    assert found.pop("a.jsonl:1").startswith("the line is not JSON: ")
    assert found == {
        "a.jsonl:2": "the line is a list, not a JSON object",
        "a.jsonl:3": "the text is a list, but each row needs one value",
        "a.jsonl:4": "the label is an object, not text",
        "a.jsonl:5": "the text contains half a surrogate pair, \\ud83d, at character 13",
        "a.jsonl:6": "the label is missing",
        "a.jsonl:7": "the label is missing",
    }
    assert len(manifest.rows) == 32


def test_every_bad_row_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    texts = pa.array([*(text.encode() for _, text in rows()), b"caf\xe9", None], pa.binary()).view(pa.string())
    labels = [*(float(n % 2) for n in range(40)), 1.0, 0.0]
    labels[4] = None  # type: ignore[call-overload]  # pandas has made floats of whole numbers to store it
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "a.parquet")
    manifest = read(tmp_path / "a.parquet", **LENIENT)

    assert reasons(manifest, "bad") == {
        "a.parquet:5": "the label is missing",
        "a.parquet:41": "the text is not UTF-8: byte 0xE9 at character 4",
        "a.parquet:42": "the text is empty",
    }
    assert manifest.classes == ("0", "1")


def test_too_many_bad_rows_are_refused_with_what_would_allow_them(write: Write) -> None:
    path = write("a.csv", [("label", "text"), *rows(36), *(("ham", "") for _ in range(4))])
    with pytest.raises(DataError, match=r"4 of 40 texts cannot be read \(10\.0%\)[\s\S]*a\.csv:38: the text is empty"):
        read(path)
    assert len(read(path, max_bad_fraction=0.1).rows) == 36


def test_an_unclosed_quote_counts_with_every_line_that_it_swallows(write: Write) -> None:
    lines = [f"{label},{text}" for label, text in rows()]
    lines[10] = 'ham,"never closed'
    lines[20] = 'ham,"closes" the other'
    with pytest.raises(DataError, match=r"11 of 40 .*\n  a\.csv:12: .*\(one record from line 12 to 22\)"):
        read(write("a.csv", "label,text\n" + "\n".join(lines)))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "has no rows"),
        ("a.csv", b"label,text\n", "has no rows"),
        ("a.csv", "label,text\nham,hello".encode("utf-16"), "is in UTF-16, or not text at all. Save it as"),
        ("a.csv", "label,text\nham,hello".encode("utf-16-le"), "is in UTF-16, or not text at all. Save it as UTF-8"),
        (
            "a.csv",
            "texte,cat\u00e9gorie\n".encode("latin-1") + 9 * b"hello there,ham\n",
            r"line of .*a\.csv names a column "
            r"that is not UTF-8: byte 0xE9 at character 4\. Save the table as UTF-8, for example with `iconv",
        ),
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
        (
            "a.ods",
            b"x",
            r"is a file with an unsupported extension: tables have \.csv, .*, \.json, .*\.xlsx, archives",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(write: Write, name: str, content: bytes, words: str) -> None:
    path = write(name, content)
    with pytest.raises(DataError, match=words):
        read(path)
    with pytest.raises(DataError, match=words):
        check_data(DataConfig(path=path))
    check_data(DataConfig(path=write("good.csv", [("label", "text"), *rows()])))  # the control


def test_a_table_in_another_encoding_is_answered_with_how_to_convert_it(write: Write) -> None:
    lines = "\n".join(["label,text", *(f"{label},{text} \u00e9t\u00e9" for label, text in rows())])
    with pytest.raises(DataError, match=r"is not UTF-8: byte 0xE9 (?s:.*)with `iconv .*NEW`\. Or skip them: --set"):
        read(write("a.csv", lines.encode("latin-1")))
    assert len(read(write("b.csv", lines.encode())).rows) == len(list(rows())), "the control"


def test_a_cell_with_a_nul_is_named(write: Write) -> None:
    lines = ["label,text", *(f"{label},{text}" for label, text in rows() * 200)]
    lines[-1] = "ham,one\0two"
    with pytest.raises(DataError, match=r"contains a NUL at character 4"):
        read(write("a.csv", "\n".join(lines)), max_bad_fraction=0.0)


# ------------------------------------------------------------------------------------- conflicts, copies and leaks


def test_a_text_under_two_classes_is_left_out_with_all_its_copies(write: Write) -> None:
    doubtful = [("ham", "is this spam"), ("ham", "is this spam"), ("spam", "is  this\u00a0spam ")]
    manifest = read(write("a.csv", [("label", "text"), *rows(), *doubtful]))

    assert reasons(manifest, "conflict") == {
        "a.csv:42": "the same text as a.csv:44, under another class",
        "a.csv:43": "the same text as a.csv:44, under another class",
        "a.csv:44": "the same text as a.csv:42, under another class",
    }
    assert len(manifest.rows) == 40


def test_copies_stay_on_one_side_and_are_texts_that_look_the_same(write: Write) -> None:
    copies = [("ham", "Caf\u00e9 at noon"), ("ham", "Cafe\u0301 at\tnoon\n"), ("ham", "caf\u00e9 at noon")]
    manifest = read(write("a.csv", [("label", "text"), *copies, *rows()]))

    assert reasons(manifest, "duplicate") == {"a.csv:3": "the same text as a.csv:2"}
    sides = {row.path: row.split for row in manifest.rows}
    assert sides["a.csv:2"] == sides["a.csv:3"]
    assert contents(manifest)["a.csv:3"][0] == "Caf\u00e9 at noon" == normalized("Cafe\u0301 at\tnoon\n")


def with_splits(table: list[Row]) -> list[Row]:
    """The rows with a given split: some of each class in each."""
    return [("label", "text", "split"), *((*row, ("train", "val", "TEST")[n // 2 % 3]) for n, row in enumerate(table))]


def test_a_given_split_column_is_kept_to(write: Write) -> None:
    path = write("a.csv", with_splits(rows()))
    manifest = read(path)

    assert {int(row.path.split(":")[1]) // 2 % 3: row.split for row in manifest.rows} == {
        1: "train",
        2: "validation",
        0: "test",
    }
    assert "split in column split (by its name)" in manifest.layout
    assert "split off" not in manifest.layout


def test_a_split_that_the_column_lacks_is_taken_from_the_training_rows(write: Write) -> None:
    table = [("label", "text", "fold"), *((*row, "train" if n < 34 else "test") for n, row in enumerate(rows()))]
    manifest = read(write("a.csv", table), split_column="fold")

    assert {row.split for row in manifest.rows if int(row.path.split(":")[1]) < 36} == {"train", "validation"}
    assert len(manifest.of("test")) == 6
    assert "validation (15%) split off" in manifest.layout


def test_a_split_that_is_none_is_a_bad_row(write: Write) -> None:
    table = [*with_splits(rows()), ("ham", "of no split", "later"), ("ham", "of none", "")]
    manifest = read(write("a.csv", table), split_column="split")

    assert reasons(manifest, "bad") == {
        "a.csv:42": "the split is 'later', not one of train, validation, test",
        "a.csv:43": "the split is missing",
    }


@pytest.mark.parametrize("name", ["dev", "development", "eval", "Dev"])
def test_other_names_of_the_validation_split_are_known_in_columns_and_of_tables(write: Write, name: str) -> None:
    splits = ("train", name, "test")
    table = [(*row, splits[n // 2 % 3]) for n, row in enumerate(rows(60))]
    column = read(write("a.csv", [("label", "text", "split"), *table]))
    for split in splits:
        path = write(f"mails/{split}.csv", [("label", "text"), *(row[:2] for row in table if row[2] == split)])
    folder = read(path.parent)

    wanted = {text: "validation" if split == name else split for _, text, split in table}
    for manifest in (column, folder):
        texts = texts_of(manifest, manifest.rows)
        assert {text: row.split for text, row in zip(texts, manifest.rows, strict=True)} == wanted
        assert manifest.bad == ()


@pytest.mark.parametrize(("name", "other"), [("split", ""), ("Subset", "unlabelled"), ("partition", "3")])
def test_a_column_named_split_is_kept_to_though_a_cell_is_no_split(write: Write, name: str, other: str) -> None:
    splits = ["train", "dev", "test"]
    table = [(*row, splits[n // 2 % 3]) for n, row in enumerate(rows(60))]
    table[6] = (*table[6][:2], other)
    manifest = read(write("a.csv", [("label", "text", name), *table]))

    given = {text: split for _, text, split in table}
    kept = {text: row.split for text, row in zip(texts_of(manifest, manifest.rows), manifest.rows, strict=True)}
    assert {text for text, split in kept.items() if split == "test"} == {t for t, s in given.items() if s == "test"}
    assert {text for text, split in kept.items() if split == "train"} == {t for t, s in given.items() if s == "train"}
    assert list(reasons(manifest, "bad")) == ["a.csv:8"]
    assert f"split in column {name} (by its name)" in manifest.layout


def test_a_column_named_split_that_holds_no_split_is_none(write: Write) -> None:
    manifest = read(write("a.csv", [("label", "text", "split"), *((*row, "banana") for row in rows())]))

    assert {row.split for row in manifest.rows} == {"train", "validation", "test"}
    assert "in column split" not in manifest.layout


def test_a_text_in_two_given_splits_stays_where_it_is_held_out_most(write: Write) -> None:
    leaks = [("ham", "in all", split) for split in ("train", "val", "test")]
    manifest = read(write("a.csv", [*with_splits(rows()), *leaks]))

    assert reasons(manifest, "leak") == {
        "a.csv:42": "the same text as a.csv:44 in the test split",
        "a.csv:43": "the same text as a.csv:44 in the test split",
    }
    assert {row.path: row.split for row in manifest.rows}["a.csv:44"] == "test"


def test_groups_stay_on_one_side_and_leak_between_given_splits(write: Write) -> None:
    table = [("label", "text", "author"), *((*row, f"author {n // 4}") for n, row in enumerate(rows(200)))]
    manifest = read(write("a.csv", table), group_column="author")

    sides: dict[str | None, set[str]] = {}
    for row in manifest.rows:
        sides.setdefault(row.group, set()).add(row.split)
    assert len(sides) == 50
    assert all(len(splits) == 1 for splits in sides.values())

    given = [(*row, "me" if n in {1, 5} else "") for n, row in enumerate(with_splits(rows()))]
    given[0] = (*given[0][:3], "author")
    leaking = read(write("b.csv", given), group_column="author")
    assert reasons(leaking, "leak") == {"b.csv:2": "its group 'me' is also in the test split (b.csv:6)"}


def test_a_class_that_only_a_held_out_split_has_is_left_out_and_named(write: Write) -> None:
    table = [*with_splits(rows()), ("egg", "an unheard of text", "test")]
    manifest = read(write("a.csv", table))

    assert manifest.classes == ("ham", "spam")
    assert list(reasons(manifest, "class").values()) == ["no text of this class to train on, 1 text skipped"]


def test_a_pattern_of_file_names_is_refused_for_texts(write: Write) -> None:
    path = write("a.csv", [("label", "text"), *rows()])
    with pytest.raises(DataError, match=r"data\.group_pattern .* set the column of groups with data\.group_column"):
        read(path, group_pattern="a")


# ---------------------------------------------------------------------------------------------- digest and sides


def test_the_order_of_rows_and_columns_does_not_matter_but_their_content_does(write: Write) -> None:
    table = rows(60)
    before = read(write("a.csv", [("label", "text"), *table]))
    shuffled = random.Random(0).sample(table, len(table))
    after = read(write("b.csv", [("text", "label"), *((text, label) for label, text in shuffled)]))

    assert after.digest == before.digest
    assert texts_of(after, after.rows) == texts_of(before, before.rows)
    assert [row.split for row in after.rows] == [row.split for row in before.rows]

    relabelled = [("spam", table[0][1]), *table[1:]]
    assert read(write("c.csv", [("label", "text"), *relabelled])).digest != before.digest
    edited = [("ham", table[0][1].upper()), *table[1:]]
    assert read(write("d.csv", [("label", "text"), *edited])).digest != before.digest


def test_rows_that_are_added_move_no_other_row(write: Write) -> None:
    before, after = (read(write("a.csv", [("label", "text"), *rows(count)])) for count in (100, 200))

    sides = {row.digest: row.split for row in after.rows}
    assert all(sides[row.digest] == row.split for row in before.rows)
    assert len(after.rows) == 200


def test_texts_that_changed_since_the_scan_are_an_error(write: Write) -> None:
    path = write("a.csv", [("label", "text"), *rows()])
    manifest = read(path)
    assert len(texts_of(manifest, manifest.of("test"))) == len(manifest.of("test"))

    changed = manifest.of("test")[0]
    table = [("label", "text"), *rows()]
    line = int(changed.path.split(":")[1])
    table[line - 1] = ("ham", "something else")
    write("a.csv", table)

    with pytest.raises(DataError, match=rf"1 text of .* changed since .*\n  a.csv:{line}\n"):
        texts_of(manifest, manifest.of("test"))
    assert texts_of(manifest, manifest.of("train"))  # none of these changed
    path.unlink()
    with pytest.raises(DataError, match=r"Cannot read .*a\.csv"):
        texts_of(manifest, manifest.of("train"))


def test_a_manifest_of_texts_survives_its_file(write: Write, tmp_path: Path) -> None:
    manifest = read(write("a.tsv", rows()))
    manifest.to_json(tmp_path / "manifest.json")

    again = Manifest.from_json(tmp_path / "manifest.json")

    assert again == manifest
    assert contents(again) == contents(manifest)


# ------------------------------------------------------------------------------------- other tables, and the report


def test_texts_of_another_table_come_with_their_classes(write: Write) -> None:
    path = write("a.csv", [("label", "text"), ("ham", " one\ntext "), ("spam", "another"), ("ham", "")])
    config = DataConfig(path=path, **LENIENT)

    assert labelled_texts(path, config) == (["one text", "another"], ["ham", "spam"])
    with pytest.raises(DataError, match=r"a\.csv:5: the text is empty"):
        labelled_texts(path, config.model_copy(update={"max_bad_fraction": 0.0}))


def test_splits_of_another_table_do_not_matter_and_it_may_be_a_folder(write: Write) -> None:
    table = [("label", "text", "split"), ("ham", "one text", "train"), ("spam", "another", ""), ("ham", "third", "x")]
    path = write("a.csv", table)
    for name in ("train", "dev"):
        folder = write(f"mails/{name}.csv", [("label", "text"), ("ham", f"{name} a"), ("spam", f"{name} b")]).parent

    assert labelled_texts(path, DataConfig(path=path)) == (["one text", "another", "third"], ["ham", "spam", "ham"])
    texts, classes = labelled_texts(folder, DataConfig(path=path))
    assert (texts, classes) == (["train a", "train b", "dev a", "dev b"], ["ham", "spam"] * 2)


def test_texts_to_classify_keep_their_places(write: Write) -> None:
    labelled = write("a.csv", [("label", "text"), ("ham", "one"), ("spam", ""), ("ham", "three")])
    bare = write("b.jsonl", '{"message": "one"}\n{"message": null}\n{"message": "three"}\n')
    lines = write("c.txt", "\ufeffone\n\n  two, words\r\n")

    assert given_texts(labelled) == ["one", "", "three"]
    assert given_texts(bare) == ["one", "", "three"]
    assert given_texts(labelled, "label") == ["ham", "spam", "ham"]
    assert given_texts(lines) == ["one", "  two, words"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"good\ncaf\xe9\n", "not UTF-8 in line 2"),
        ("a.csv", b"text\ngood\ncaf\xe9\n", "line 3: the text is not UTF-8: byte 0xE9"),
        ("a.csv", b"id,text\n1,good\n2,bad,3\n", "line 3 has 3 fields"),
    ],
)
def test_texts_to_classify_that_cannot_be_read_are_named(write: Write, name: str, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        given_texts(write(name, content))


def test_texts_to_classify_are_in_the_column_that_was_trained_on_or_the_one_that_is_named(write: Write) -> None:
    path = write("a.csv", [("text", "body"), ("a subject", "one"), ("another", "two")])

    assert given_texts(path) == ["a subject", "another"]
    assert given_texts(path, trained="body") == ["one", "two"]
    assert given_texts(path, "text", trained="body") == ["a subject", "another"]
    assert given_texts(path, trained="message") == ["a subject", "another"]
    with pytest.raises(
        DataError, match=r"^--text-column='mail' is not a column of a\.csv\. The columns are: text, body\.$"
    ):
        given_texts(path, "mail")
    doubtful = write("b.csv", [("text", "message", "content"), ("one", "two", "three")])
    assert given_texts(doubtful) == ["one"]  # the first of the usual names wins
    doubtful = write("b.csv", [("message", "content"), ("one", "two")])
    with pytest.raises(DataError, match=r"several columns match: message, content\..* Set it: --text-column=NAME$"):
        given_texts(doubtful)


def test_a_first_line_that_may_be_a_name_or_a_text_is_asked_about(write: Write) -> None:
    path = write("a.csv", [("note_body",), ("see you at lunch",), ("win a prize",)])

    with pytest.raises(DataError, match=r"is a header: note_body\..*--text-column=note_body;.*--text-column=1$"):
        given_texts(path)
    assert (
        given_texts(path, "note_body") == given_texts(path, trained="note_body") == ["see you at lunch", "win a prize"]
    )
    assert given_texts(path, "1") == ["note_body", "see you at lunch", "win a prize"]
    assert given_texts(write("b.csv", [("see you",), ("win a prize",)])) == ["see you", "win a prize"]
    assert len(given_texts(write("b.csv", [(text,) for text in ("see you", "win a prize", "call me")]))) == 3
    assert (
        given_texts(write("c.csv", [("1", "see you at lunch"), ("2", "win a free prize")]), "2")[0]
        == "see you at lunch"
    )


def test_a_folder_and_a_column_of_lines_are_refused_as_texts_to_classify(write: Write) -> None:
    path = write("a.txt", "one\ntwo\n")
    with pytest.raises(DataError, match=r"is a folder: give a table of texts \(\.csv, .*\) or a \.txt file"):
        given_texts(path.parent)
    with pytest.raises(DataError, match=r"a\.txt has one text per line and no columns: remove --text-column=body"):
        given_texts(path, "body")


def test_the_report_speaks_of_texts(write: Write) -> None:
    manifest = read(write("a.csv", [("label", "text"), ("ham", "a copy\x1b[31m"), ("ham", "a copy\x1b[31m"), *rows()]))

    text, content = rendered(data_report(manifest)), json.loads(json.dumps(report_json(manifest)))

    assert "Copies of another text" in text
    assert "Length of a text in characters: 25 (median), 25 (longest)" in text
    assert "image" not in text
    assert content["kind"] == "texts"
    assert content["texts"] == 42
    assert content["table"]["text_column"] == "text"


def test_a_table_on_object_storage_is_refused_and_a_folder_is_not(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://bucket/mails\.CSV is a table.*download it"):
        data_location("s3://bucket/mails.CSV", tmp_path)
    with pytest.raises(DataError, match=r"s3://bucket/pets\.tar\.gz is an archive.*download it"):
        data_location("s3://bucket/pets.tar.gz", tmp_path)
    assert data_location("s3://bucket/mails", tmp_path)["url"] == "s3://bucket/mails"


def test_real_messages_are_read_as_they_are(shared: Path) -> None:
    manifest = read(shared / "data" / "sms_spam.tsv")

    assert len(manifest.rows) == 5574
    assert {name: sum(counts.values()) for name, counts in manifest.counts().items()} == {"ham": 4827, "spam": 747}
    assert {problem.kind for problem in manifest.problems} == {"duplicate"}
    assert len(manifest.problems) == 414
    assert all(0.12 < len(manifest.of(split)) / 5574 < 0.18 for split in ("validation", "test"))  # type: ignore[arg-type]
    assert len(texts_of(manifest, manifest.rows)) == 5574
