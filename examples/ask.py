"""A client for ``thawline serve`` that only uses the standard library.

    thawline serve digits                        # in one terminal
    python examples/ask.py digits/7/*.png        # in another; add --url http://… for a remote server

It sends all images in one JSON request; the predictions come back in the same order.
"""

import argparse
import base64
import json
import urllib.request
from pathlib import Path

parser = argparse.ArgumentParser(description="Send images to a Thawline server.")
parser.add_argument("images", nargs="+", type=Path)
parser.add_argument("--url", default="http://127.0.0.1:8000")
given = parser.parse_args()

images = [base64.b64encode(image.read_bytes()).decode() for image in given.images]
request = urllib.request.Request(
    f"{given.url}/predict?top_k=3",
    json.dumps({"images": images}).encode(),
    {"Content-Type": "application/json"},
)
with urllib.request.urlopen(request, timeout=60) as response:
    answer = json.load(response)

print(f"{answer['model']}, version {answer['version']}")
for image, prediction in zip(given.images, answer["predictions"], strict=True):
    known = "unlike all training data" if prediction["unknown"] else " or ".join(prediction["prediction_set"] or [])
    print(f"{image}: {prediction['label']} {prediction['probability']:.3f} ({known})")
