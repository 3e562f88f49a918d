"""Health check of a container: exit code 0 if the address answers with a success.

Slim images have no curl. Proxies in the environment are ignored, because the address is inside this container.
"""

import sys
import urllib.request

urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=8)
