"""URLs of databases, servers and object storage: validation, and removal of secrets."""

import re
from typing import Annotated

from pydantic import AfterValidator

__all__ = ["ArtifactsUrl", "DataUrl", "with_driver", "without_password"]


def with_driver(url: str) -> str:
    """Add to a URL the driver that ``thawline[postgres]`` installs: SQLAlchemy 2.0 would choose psycopg2, its successor
    does not."""
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


def without_password(url: str) -> str:
    """Mask a password, as in ``postgresql://me:***@host/db``; other text is returned unchanged."""
    url = re.sub(r"(https?://[^/@:]*):[^/\s]*@", r"\1:***@", url)
    # In a database URL up to the last @: to SQLAlchemy, a slash is part of the password.
    return re.sub(r"(?<!http)(?<!https)(://[^/@:\s]*):\S*@", r"\1:***@", url)


def _storage_url(value: str) -> str:
    """Check the address of a folder on object storage; credentials would end up in logs, recipes and MLflow."""
    scheme, _, rest = value.partition("://")
    host, *parts = rest.rstrip("/").split("/")
    if "::" in value:
        raise ValueError("must name one folder, without '::'")
    user_and_port = re.fullmatch(r"([^:@]+@)?[^:@]*(:\d+)?", host)
    if not user_and_port or "?" in rest or (user_and_port[2] and any("@" in part for part in parts)):
        raise ValueError(
            "must not contain a password, key or query: credentials belong in the environment, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or not any((host, *parts)) or not value.isprintable():
        raise ValueError(f"must be a URL of a folder such as s3://bucket/photos, but got {value!r}")
    if not {".", ".."}.isdisjoint(parts):
        raise ValueError(f"must not contain '.' or '..', but got {value!r}")
    return value.rstrip("/")


def _data_url(value: str) -> str:
    url = _storage_url(value)
    if url.startswith(("http:", "https:", "file:", "local:")):
        raise ValueError(
            f"must be object storage such as s3://bucket/photos, but got {value!r}; for a local folder, give its path"
        )
    return url


def _artifacts_url(value: str) -> str:
    url = _storage_url(value)
    if url.startswith(("http:", "https:", "mlflow-artifacts:", "memory:")):
        raise ValueError(f"must be object storage such as s3://bucket/thawline, or file:///folder, but got {value!r}")
    return url


DataUrl = Annotated[str, AfterValidator(_data_url)]
ArtifactsUrl = Annotated[str, AfterValidator(_artifacts_url)]
