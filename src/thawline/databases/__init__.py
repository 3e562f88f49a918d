"""SQLite databases of MLflow and Prefect, created atomically."""

from thawline.databases._schema import Condition, Schema
from thawline.databases._whole import ensure_whole, sqlite_url
from thawline.databases.prefect import PREFECT, prefect_database

__all__ = ["PREFECT", "Condition", "Schema", "ensure_whole", "prefect_database", "sqlite_url"]
