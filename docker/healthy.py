"""Health check of a container: exit code 0 if the address answers with a success.

Here because slim images have no curl. A proxy in the environment is for the world outside, not for this container.
"""

import sys
import urllib.request

urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=8)
