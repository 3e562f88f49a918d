"""The section ``data``."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from thawline.config.model import Model, word_off
from thawline.config.urls import DataUrl

__all__ = ["DataConfig"]


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"must be a regular expression, but got {value!r}: {error}") from None
    return value


def _column(value: object) -> object:
    return str(value) if type(value) is int else value  # --set data.text_column=2 is a number to YAML


ColumnName = Annotated[str, BeforeValidator(_column, json_schema_input_type=str | int)]


CorrectionFile = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""Absolute, because later commands read it again to tell what a model was trained on."""


class DataConfig(Model):
    """The folder of labelled images or table of labelled texts, and how to read it."""

    path: Path
    """Folder with one subfolder of images per class, optionally below train/, validation/ and test/; or a table of
    labelled texts or images (.csv, .tsv, .jsonl, .json, .parquet or .xlsx), or a folder of such tables; or an archive
    of any of these."""
    url: DataUrl | None = None
    """Folder on object storage, such as ``s3://bucket/photos``, which is mirrored to ``path`` first."""
    validation_fraction: float = Field(0.15, gt=0, lt=0.5)
    """Fraction of the images or texts split off for validation, if the data have no validation split."""
    test_fraction: float = Field(0.15, gt=0, lt=0.5)
    """Fraction of the images or texts held out for the final test, if the data have no test split."""
    group_pattern: Annotated[str, AfterValidator(_pattern)] | None = None
    """Regular expression to search for in each file's relative path; files with the same match (of its first group, if
    it has one) stay on one side of the split, such as those of a patient, a camera or a video."""
    group_column: ColumnName | None = None
    """Column with each row's group: in the table or, for images in class folders, in DATA/metadata.csv (which also
    needs a column ``file_name``)."""
    near_duplicates: Annotated[
        Literal["together", "off"],
        BeforeValidator(word_off, json_schema_input_type=Literal["together", "off", False]),
    ] = "together"
    """Near-duplicate images, the same picture recompressed, resized or lightly cropped: ``together`` lists them and,
    without groups, keeps them on one side of the split; ``off`` skips the check."""
    max_bad_fraction: float = Field(0.05, ge=0, le=1)
    """Maximum fraction of unreadable files or rows; above it nothing is trained."""
    max_pixels: int = Field(64_000_000, ge=1)
    """Maximum number of pixels (width times height) per image; larger images are rejected before decoding."""
    workers: int | None = Field(None, ge=1)
    """Decoding processes; by default one per CPU core."""
    cache: Annotated[
        Literal["auto", "off"], BeforeValidator(word_off, json_schema_input_type=Literal["auto", "off", False])
    ] = "auto"
    """Whether to decode all images once and keep them on disk, 150 kB per image of 224 pixels: ``auto`` does so if they
    take at most half of the free space on the home's disk; ``off`` decodes images whenever they are read: once to store
    activations, and in every epoch of a trial that does not start from stored ones."""
    text_column: ColumnName | None = None
    """Column of a table with the texts: its name, or its number (from 1) if the table has no header; by default
    detected from common names, such as text or message, else from the contents of the columns."""
    image_column: ColumnName | None = None
    """Column of a table with the names of the image files, with or without folders and extension; by default detected
    from common names, such as image_path or image_id, and from whether such files exist."""
    image_folder: Path | None = None
    """Folder with the images that a table names; by default the folder of the table."""
    class_level: int | None = Field(None, ge=1)
    """Level of the class folders: 1 for the folders directly in the data folder or its split folders, 2 for their
    subfolders. By default 1, with an error if their names suggest that they are not classes."""
    class_pattern: Annotated[str, AfterValidator(_pattern)] | None = None
    """Regular expression to search for in each image's file name; the match (of its first group, if it has one) is the
    class: ``(\\w+)\\.\\d+\\.jpg`` for cat.12.jpg. Split folders are recognised; other folders are not classes then."""
    exclude: CorrectionFile | None = None
    """CSV whose column ``path`` lists images or texts to leave out, as written by ``thawline check DATA --labels``."""
    relabel: CorrectionFile | None = None
    """CSV in the same format whose column ``suggested`` is the class of these images or texts; it overrides their
    folder or table."""
    label_column: ColumnName | None = None
    """Column of a table with the labels; by default detected in the same way."""
    split_column: ColumnName | None = None
    """Column of a table with each row's split (train, validation or test); by default a column named split. A missing
    split is split off the training rows."""
    header: bool | None = None
    """Whether the first line of a .csv or .tsv table is a header; by default detected by comparing it with the lines
    below."""

    @model_validator(mode="after")
    def _without_contradictions(self) -> Self:
        if self.group_pattern is not None and self.group_column is not None:
            raise ValueError("group_pattern and group_column cannot both be set")
        others = ("class_level", "image_column", "image_folder", "label_column", "split_column")
        if self.class_pattern is not None and (wrong := [name for name in others if getattr(self, name) is not None]):
            raise ValueError(f"class_pattern and {wrong[0]} cannot both be set: each defines the classes")
        if self.validation_fraction + self.test_fraction >= 0.8:
            raise ValueError("validation_fraction + test_fraction must be less than 0.8, to leave data to train on")
        return self
