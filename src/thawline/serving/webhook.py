"""MLflow's webhooks: a word from the server that an alias has moved, so that nobody waits for the next poll."""

import base64
import hashlib
import hmac
import time

from starlette.datastructures import Headers

__all__ = ["is_genuine"]

_OLDEST_SECONDS = 300
"""A delivery that was recorded somewhere is worth nothing after this time."""


def is_genuine(secret: str, headers: Headers, body: bytes) -> bool:
    """Whether a delivery is signed with the secret (``v1``, HMAC-SHA256 of id, time and body) and is recent."""
    delivery, sent_at = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
    signed = b".".join([delivery.encode(), sent_at.encode(), body])
    expected = "v1," + base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256)).decode()
    if not hmac.compare_digest(expected.encode(), headers.get("x-mlflow-signature", "").encode()):
        return False
    return sent_at.isdigit() and abs(time.time() - int(sent_at)) < _OLDEST_SECONDS
