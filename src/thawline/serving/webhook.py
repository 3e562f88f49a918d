"""MLflow's webhooks: notifications that an alias has moved, without waiting for the next poll."""

import base64
import hashlib
import hmac
import time

from starlette.datastructures import Headers

__all__ = ["is_genuine", "is_signed"]

_OLDEST_SECONDS = 300
"""Maximum age of a delivery, against replays of a recorded one."""


def is_signed(headers: Headers) -> bool:
    """Whether a delivery has a recent time and a signature of the right form: a check without its body."""
    sent_at, signature = headers.get("x-mlflow-timestamp", ""), headers.get("x-mlflow-signature", "")
    if not (sent_at.isascii() and sent_at.isdigit() and len(sent_at) < 20):
        return False
    return signature.startswith("v1,") and abs(time.time() - int(sent_at)) < _OLDEST_SECONDS


def is_genuine(secret: str, headers: Headers, body: bytes | bytearray) -> bool:
    """Whether a delivery :func:`is_signed` with the secret (``v1``, HMAC-SHA256 of id, time and body)."""
    delivery, sent_at = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
    signed = b".".join([delivery.encode(), sent_at.encode(), body])
    expected = "v1," + base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256)).decode()
    genuine = hmac.compare_digest(expected.encode(), headers.get("x-mlflow-signature", "").encode())
    return genuine and is_signed(headers)
