"""Turn a folder of labelled images, or a table of labelled texts, into arrays for training.

``scan`` reads either into a ``Manifest``; ``decoded`` turns a manifest of images into ``DecodedImages``, ``tokenized``
one of texts into ``TokenizedTexts``; ``report`` describes the result in words.
"""

from thawline.data._files import as_text, make_empty_folder, markdown_text, printable, write_atomically
from thawline.data.cache import DecodedImages, decoded
from thawline.data.contract import DataKind, ImageShapes, Manifest, Problem, Row, TextTable, few
from thawline.data.digits import write_digits
from thawline.data.folder import files_of, given_files, image_files, labelled_files
from thawline.data.images import BadImage, declared_pixels, decode, encoded_image, resize_and_crop
from thawline.data.remote import MIRROR_STATE, MirrorSummary, check_url, data_location, mirror
from thawline.data.report import problem_titles, report_json
from thawline.data.source import check_data, data_kind, scan
from thawline.data.splits import Split
from thawline.data.state import data_state
from thawline.data.streamed import StreamedImages
from thawline.data.text import given_texts, is_table, labelled_texts, texts_of
from thawline.data.tokenizer import TextTokenizer, normalized
from thawline.data.tokens import TokenizedTexts, Tokens, tokenized

__all__ = [
    "MIRROR_STATE",
    "BadImage",
    "DataKind",
    "DecodedImages",
    "ImageShapes",
    "Manifest",
    "MirrorSummary",
    "Problem",
    "Row",
    "Split",
    "StreamedImages",
    "TextTable",
    "TextTokenizer",
    "TokenizedTexts",
    "Tokens",
    "as_text",
    "check_data",
    "check_url",
    "data_kind",
    "data_location",
    "data_state",
    "declared_pixels",
    "decode",
    "decoded",
    "encoded_image",
    "few",
    "files_of",
    "given_files",
    "given_texts",
    "image_files",
    "is_table",
    "labelled_files",
    "labelled_texts",
    "make_empty_folder",
    "markdown_text",
    "mirror",
    "normalized",
    "printable",
    "problem_titles",
    "report_json",
    "resize_and_crop",
    "scan",
    "texts_of",
    "tokenized",
    "write_atomically",
    "write_digits",
]
