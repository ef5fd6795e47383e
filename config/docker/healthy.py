"""Exit code 0 when the health page says that one component is healthy: ``healthy.py scheduler [URL]``."""

import json
import sys
import urllib.request

component = sys.argv[1]
url = sys.argv[2] if len(sys.argv) > 2 else "http://api-server:8080"
with urllib.request.urlopen(f"{url}/api/v2/monitor/health", timeout=8) as answer:
    status = json.load(answer)[component]["status"]
sys.stdout.write(f"{component}: {status}\n")
sys.exit(status != "healthy")
