"""Tables that are compressed, in JSON arrays or in Excel's files, and rows with several labels."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thawline.config import DataConfig
from thawline.data import Manifest, data_kind, given_texts, scan, texts_of
from thawline.exceptions import DataError

pytestmark = pytest.mark.usefixtures("in_process")

TEXTS = [(f"message number {n} of many", ("ham", "spam")[n % 2]) for n in range(40)]
OBJECTS = [{"text": text, "label": label} for text, label in TEXTS]
CSV = "\n".join(["text,label", *(f"{text},{label}" for text, label in TEXTS)]).encode()
JSONL = "\n".join(map(json.dumps, OBJECTS)).encode()
ARRAY = json.dumps(OBJECTS, indent=2).encode()


def read(path: Path, **options: Any) -> Manifest:
    return scan(DataConfig(path=path, **options))


def reasons(manifest: Manifest, kind: str) -> dict[str, str]:
    return {problem.path: problem.reason for problem in manifest.problems if problem.kind == kind}


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("mail.csv.gz", gzip.compress(CSV), 2),
        ("MAIL.CSV.GZ", gzip.compress(b"\xef\xbb\xbf" + CSV.replace(b",", b";")), 2),
        ("mail.tsv.gz", gzip.compress(CSV.replace(b",", b"\t")), 2),
        ("mail.jsonl.gz", gzip.compress(JSONL), 1),
        ("mail.JSON", ARRAY, 1),
        ("mail.json", b"\xef\xbb\xbf\n" + ARRAY, 1),
        ("mail.json.gz", gzip.compress(ARRAY), 1),
        ("mail.json", JSONL, 1),
    ],
    ids=["csv.gz", "with semicolons", "tsv.gz", "jsonl.gz", "json", "with a byte order mark", "json.gz", "json lines"],
)
def test_the_same_rows_are_read_from_every_kind_of_file(tmp_path: Path, name: str, content: bytes, first: int) -> None:
    path = tmp_path / "data" / name
    path.parent.mkdir()
    path.write_bytes(content)

    for data in (path, path.parent):  # the table, or the folder that holds it alone
        manifest = read(data)
        labels = [manifest.classes[row.label] for row in manifest.rows]
        assert sorted(zip(texts_of(manifest, manifest.rows), labels, strict=True)) == sorted(TEXTS)
        assert min(int(row.path.rpartition(":")[2]) for row in manifest.rows) == first
    assert read(path).name.lower() == "mail"
    assert given_texts(path) == [text for text, _ in TEXTS]


@pytest.fixture
def excel(tmp_path: Path) -> Callable[..., Path]:
    openpyxl = pytest.importorskip("openpyxl")

    def make(*sheets: list[list[Any]], name: str = "mail.xlsx") -> Path:
        book = openpyxl.Workbook()
        book.remove(book.active)
        for number, rows in enumerate(sheets):
            sheet = book.create_sheet(f"sheet {number}")
            for row in rows:
                sheet.append(row)
        book.save(tmp_path / name)
        return tmp_path / name

    return make


def test_the_first_sheet_of_an_excel_file_is_a_table(excel: Callable[..., Path]) -> None:
    rows = [["text", "label", None], [None, None], *([text, label, ""] for text, label in TEXTS)]
    path = excel(rows, [["another"]])
    manifest = read(path)

    assert "the first of 2 sheets, sheet 0" in manifest.layout
    assert sorted(texts_of(manifest, manifest.rows)) == sorted(text for text, _ in TEXTS)
    assert min(int(row.path.split(":")[1]) for row in manifest.rows) == 3  # the row in the sheet, the empty one counted
    assert given_texts(path) == [text for text, _ in TEXTS]


def test_cells_of_an_excel_file_are_called_as_in_csv(excel: Callable[..., Path]) -> None:
    for values, names in (((True, False), ("false", "true")), ((1, 2.0), ("1", "2")), ((0.5, 1.5), ("0.5", "1.5"))):
        rows = [["text", "label"], *([text, values[n % 2]] for n, (text, _) in enumerate(TEXTS))]
        assert read(excel(rows)).classes == names
    manifest = read(excel([["text", "label"], *map(list, TEXTS), ["no label"], [None, "ham"]]))
    assert reasons(manifest, "bad") == {
        "mail.xlsx:42": "the label is missing",
        "mail.xlsx:43": "the text is empty",
    }


def test_an_excel_file_of_images_is_a_table_of_images(excel: Callable[..., Path], fill: Callable[..., Path]) -> None:
    root = fill({f"{n:03}.png": n for n in range(40)})
    table = excel([["image", "label"], *([f"{n:03}", ("cat", "dog")[n % 2]] for n in range(40))], name="labels.xlsx")
    manifest = scan(DataConfig(path=table, image_folder=root))

    assert manifest.kind == "images"
    assert manifest.classes == ("cat", "dog")
    assert len(manifest.rows) == 40


@pytest.mark.parametrize("name", ["labels.csv.gz", "labels.json"])
def test_images_are_named_by_such_tables_too(fill: Callable[..., Path], name: str) -> None:
    rows = [(f"images/{n:03}.png", ("cat", "dog")[n % 2]) for n in range(40)]
    csv = "\n".join(["image_path,label", *(",".join(row) for row in rows)])
    array = json.dumps([{"image_path": path, "label": label} for path, label in rows])
    content = gzip.compress(csv.encode()) if name.endswith("gz") else array.encode()
    root = fill({path: n for n, (path, _) in enumerate(rows)} | {name: content})

    for data in (root, root / name):
        assert data_kind(DataConfig(path=data)) == "images"
        manifest = read(data)
        assert f"table of images {name}" in manifest.layout
        assert (manifest.classes, len(manifest.rows)) == (("cat", "dog"), 40)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv.gz", CSV, "Not a gzipped file"),
        ("a.csv.gz", gzip.compress(CSV)[:60], "Compressed file ended"),
        ("a.jsonl.gz", gzip.compress(JSONL)[:-9] + b"123456789", r"Cannot read .*a\.jsonl\.gz"),
        ("a.json", b'[{"text": "a", ', "is not JSON"),
        ("a.json", b'["a", "b"]', "an array of str, not of JSON objects"),
        (
            "a.json",
            b'{\n "text": ["a"],\n "label": ["b"]\n}',
            "must be an array of JSON objects",
        ),
        ("a.json", b"[" * 100_000, "is not JSON"),
        ("a.json", b"[]", "has no rows"),
        ("a.csv.gz", gzip.compress("text,label".encode("utf-16")), "is in UTF-16"),
    ],
    ids=range(9),
)
def test_a_damaged_table_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read(tmp_path / name)


def test_a_damaged_excel_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    (tmp_path / "a.xlsx").write_bytes(CSV)
    with pytest.raises(DataError, match="cannot be read as an Excel file: File is not a zip file"):
        read(tmp_path / "a.xlsx")


def test_where_the_package_for_excel_is_missing_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"pip install 'thawline\[excel\]', or save the sheet as CSV"):
        read(tmp_path / "a.xlsx")


def test_beside_other_tables_json_and_copies_are_no_tables(tmp_path: Path) -> None:
    """They describe the data, or are the same once more."""
    (tmp_path / "train.csv").write_bytes(CSV)
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(CSV))
    (tmp_path / "labels.json").write_bytes(ARRAY)
    (tmp_path / "dataset_infos.json").write_text('{"default": {"splits": 1}}')
    assert len(read(tmp_path).rows) == 40

    (tmp_path / "train.csv").unlink()
    (tmp_path / "labels.json").unlink()
    (tmp_path / "~$mail.xlsx").write_bytes(b"x")
    assert "train.csv.gz" in read(tmp_path).rows[0].path


def test_a_list_of_labels_is_a_bad_row(tmp_path: Path) -> None:
    rows = [*OBJECTS, {"text": "both of them", "label": ["ham", "spam"]}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert reasons(read(tmp_path / "a.json"), "bad") == {
        "a.json:41": "the label is a list, but each row needs one value"
    }

    several = [{"text": text, "label": [label, "mail"]} for text, label in TEXTS]
    (tmp_path / "a.json").write_text(json.dumps(several))
    with pytest.raises(DataError, match="the label is a list, but each row needs one value"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("together", ["ham|spam", "ham, spam", "spam;ham", "ham spam"])
def test_labels_that_put_others_together_are_named(tmp_path: Path, together: str) -> None:
    rows = [*OBJECTS, *({"text": f"number {n} is both", "label": together} for n in range(20))]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    manifest = read(tmp_path / "a.json")

    assert together in manifest.classes
    assert "each example needs one label" in reasons(manifest, "class")[together]


def test_labels_of_several_words_are_no_several_labels(tmp_path: Path) -> None:
    rows = [{"text": text, "label": {"ham": "good mail", "spam": "bad mail"}[label]} for text, label in TEXTS]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert reasons(read(tmp_path / "a.json"), "class") == {}
