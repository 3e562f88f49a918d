"""Prefect's API server, managed by Thawline: started if none is configured, shared by processes, stopped when idle.

Nothing here imports Prefect, so that the server starts in parallel with the imports of its clients.
"""

from thawline.prefect_server._files import Address, Files
from thawline.prefect_server._using import ManagedServer, keep_up, shut_down, used

__all__ = ["Address", "Files", "ManagedServer", "keep_up", "shut_down", "used"]
