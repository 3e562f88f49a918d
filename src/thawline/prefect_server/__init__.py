"""Prefect's API server as a process that Thawline manages: started where none is named, shared, and ended when idle.

Nothing here imports Prefect, so that the server starts beside the imports of those who use it.
"""

from thawline.prefect_server._files import Address, Files
from thawline.prefect_server._using import ManagedServer, keep_up, shut_down, used

__all__ = ["Address", "Files", "ManagedServer", "keep_up", "shut_down", "used"]
