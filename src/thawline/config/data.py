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
"""Absolute: it is read again by who asks later what a model was trained on."""


class DataConfig(Model):
    """The folder of labelled images, or the table of labelled texts, and how it is read."""

    path: Path
    """Folder with one subfolder of images per class, or with train/, validation/ and test/ above the classes; or a
    table of texts, or of images and their labels (.csv, .tsv, .jsonl, .json, .parquet or .xlsx), or a folder with such
    tables; or an archive of any of these."""
    url: DataUrl | None = None
    """Folder on object storage, such as ``s3://bucket/photos``, that is mirrored to ``path`` before it is read."""
    validation_fraction: float = Field(0.15, gt=0, lt=0.5)
    """Fraction of the images or texts split off for validation where the data have no validation/ of their own."""
    test_fraction: float = Field(0.15, gt=0, lt=0.5)
    """Fraction of the images or texts held out for the final test where the data have no test/ of their own."""
    group_pattern: Annotated[str, AfterValidator(_pattern)] | None = None
    """Regular expression searched in each file's relative path; files with the same match (its first group, if it has
    one) stay on one side of the split: a patient, a camera, a video."""
    group_column: ColumnName | None = None
    """Column that names each row's group: of the table, or of DATA/metadata.csv (beside its column ``file_name``) for
    images in class folders."""
    near_duplicates: Annotated[
        Literal["together", "off"],
        BeforeValidator(word_off, json_schema_input_type=Literal["together", "off", False]),
    ] = "together"
    """Images that show the same picture in other files, compressed again, resized or lightly cropped: ``together``
    lists them and keeps them on one side of the split where there are no groups; ``off`` does not look for them."""
    max_bad_fraction: float = Field(0.05, ge=0, le=1)
    """Fraction of unreadable files or rows above which nothing is trained."""
    max_pixels: int = Field(64_000_000, ge=1)
    """Images with more pixels (width times height) are refused before they are decoded."""
    workers: int | None = Field(None, ge=1)
    """Decoding processes; by default one per CPU core."""
    cache: Annotated[
        Literal["auto", "off"], BeforeValidator(word_off, json_schema_input_type=Literal["auto", "off", False])
    ] = "auto"
    """Whether all images are decoded once and kept so, 150 kB an image of 224 pixels: ``auto`` does if that takes at
    most half of the free space of the home's disk; ``off`` decodes images whenever they are read: while their
    activations are stored, and in every epoch of a trial that begins before them."""
    text_column: ColumnName | None = None
    """Column of a table that holds the texts: its name, or its number from 1 if the table has no header; by
    default found by usual names, such as text or message, else by what the columns hold."""
    image_column: ColumnName | None = None
    """Column of a table that names the image files, with or without folders and extension; by default found by usual
    names, such as image_path or image_id, and by whether there are such files."""
    image_folder: Path | None = None
    """Folder below which the images lie that a table names; by default that of the table."""
    class_level: int | None = Field(None, ge=1)
    """Which folders of images are the classes: 1 for those directly in the data folder, or in its split folders, 2 for
    those in these. By default 1, but refused where the names say that they may be something else."""
    class_pattern: Annotated[str, AfterValidator(_pattern)] | None = None
    """Regular expression searched in the name of each image file, of which its first group, if it has one, is the
    class: ``(\\w+)\\.\\d+\\.jpg`` for cat.12.jpg. Split folders are recognised; other folders are no classes then."""
    exclude: CorrectionFile | None = None
    """CSV whose column ``path`` names images or texts to leave out, such as ``thawline check DATA --labels`` writes."""
    relabel: CorrectionFile | None = None
    """Such a CSV of images or texts that are of the class in its column ``suggested``, whatever their folder or table
    says."""
    label_column: ColumnName | None = None
    """Column of a table that holds the labels; by default found in the same way."""
    split_column: ColumnName | None = None
    """Column of a table with each row's split (train, validation or test); by default a column of the name
    split. A split that it lacks is split off the training rows."""
    header: bool | None = None
    """Whether the first line of a .csv or .tsv table is a header; by default detected from the names and the values
    below."""

    @model_validator(mode="after")
    def _without_contradictions(self) -> Self:
        if self.group_pattern is not None and self.group_column is not None:
            raise ValueError("group_pattern and group_column cannot both be set")
        others = ("class_level", "image_column", "image_folder", "label_column", "split_column")
        if self.class_pattern is not None and (wrong := [name for name in others if getattr(self, name) is not None]):
            raise ValueError(f"class_pattern and {wrong[0]} cannot both be set: each says what the classes are")
        if self.validation_fraction + self.test_fraction >= 0.8:
            raise ValueError(
                "validation_fraction + test_fraction must be less than 0.8, to leave something to train on"
            )
        return self
