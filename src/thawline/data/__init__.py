"""From a folder of labelled images to arrays that are ready to train on.

``scan`` reads a folder into a ``Manifest``; ``decoded`` turns a manifest into ``DecodedImages``; ``report`` says for
people what was found.
"""

from thawline.data._files import printable, write_atomically
from thawline.data.cache import DecodedImages, decoded
from thawline.data.digits import write_digits
from thawline.data.folder import (
    Manifest,
    Problem,
    Row,
    Split,
    check_folder,
    given_files,
    image_files,
    labelled_files,
    scan,
)
from thawline.data.images import BadImage, decode, encoded_image, resize_and_crop
from thawline.data.remote import MIRROR_STATE, MirrorSummary, check_url, data_location, mirror
from thawline.data.report import report, report_json, report_text

__all__ = [
    "MIRROR_STATE",
    "BadImage",
    "DecodedImages",
    "Manifest",
    "MirrorSummary",
    "Problem",
    "Row",
    "Split",
    "check_folder",
    "check_url",
    "data_location",
    "decode",
    "decoded",
    "encoded_image",
    "given_files",
    "image_files",
    "labelled_files",
    "mirror",
    "printable",
    "report",
    "report_json",
    "report_text",
    "resize_and_crop",
    "scan",
    "write_atomically",
    "write_digits",
]
