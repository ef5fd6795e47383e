"""Exit code 0 when a component is healthy: ``healthy.py COMPONENT [URL]``. Of Airflow's the health page says so."""

import json
import sys
import urllib.request
from urllib.error import HTTPError


def status_of_router(url: str) -> str:
    """It answers itself that nobody's path is nowhere; one that does not answer raises."""
    try:
        with urllib.request.urlopen(url, timeout=8) as answer:
            return f"answers {answer.status}"
    except HTTPError as error:
        return "healthy" if error.code == 404 else f"answers {error.code}"


def status_of(component: str, url: str) -> str:
    """What the health page says."""
    with urllib.request.urlopen(f"{url}/api/v2/monitor/health", timeout=8) as answer:
        return str(json.load(answer)[component]["status"])


component = sys.argv[1]
url = sys.argv[2] if len(sys.argv) > 2 else "http://api-server:8080"
status = status_of_router(url) if component == "router" else status_of(component, url)
sys.stdout.write(f"{component}: {status}\n")
sys.exit(status != "healthy")
