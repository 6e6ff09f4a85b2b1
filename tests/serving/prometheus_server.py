"""A real Prometheus with the shipped configuration and rules, and what it says when it is asked over HTTP."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray_head import free_port
from running_app import wait_until

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
SCRAPE_S = 2


def dashboard_queries() -> dict[str, str]:
    """Grafana's, by panel and legend, with what Grafana would put for its variables."""
    panels = json.loads((MONITORING / "grafana" / "dashboards" / "firewall.json").read_text())["panels"]
    return {
        f"{panel['title']}: {target['legendFormat']}": target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1h")
        for panel in panels
        for target in panel.get("targets", [])
    }


def rule_queries() -> dict[str, str]:
    """What each alert compares with its limit, without the comparison: there is a value while nothing is wrong too."""
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return {f"alert {rule['alert']}": re.sub(r" (>|==) [\d.]+", "", rule["expr"]) for group in groups for rule in group["rules"]}


@dataclass(frozen=True)
class Prometheus:
    """What was scraped since it was started. began_at: Unix time, seconds."""

    url: str
    began_at: float

    def series(self, query: str) -> list[list[tuple[float, float]]]:
        """The (time, value) of each series that the query gives, from the beginning to now. Raises on one that does not parse."""
        asked: dict[str, Any] = {"query": query, "start": self.began_at, "end": time.time(), "step": SCRAPE_S}
        result = self._get("query_range", **asked)["result"]
        return [[(when, float(value)) for when, value in each["values"]] for each in result]

    def knows(self, query: str) -> bool:
        """Whether there ever was an answer. Shares of what did not grow between two of Ray's reports are NaN."""
        return bool(self.series(query))

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str, **asked: Any) -> Any:
        response = httpx.get(f"{self.url}/api/v1/{what}", params=asked)
        assert response.status_code == 200, f"{asked}: {response.text}"
        return response.json()["data"]


@contextmanager
def prometheus(discovery_file: Path, folder: Path) -> Iterator[Prometheus]:
    """discovery_file: where Ray lists its exporters, which may come later. folder: of what is stored. Skips without the program."""
    executable = shutil.which("prometheus")
    if executable is None:
        pytest.skip("prometheus is not here; Debian has it in the package of that name")
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
    (scraped,) = config["scrape_configs"]
    (discovered,) = scraped["file_sd_configs"]
    discovered |= {"files": [str(discovery_file)], "refresh_interval": f"{SCRAPE_S}s"}
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [executable, f"--config.file={path}", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address={address}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _is_ready(f"http://{address}/-/ready"), "Prometheus is ready", timeout_s=60)
        yield Prometheus(f"http://{address}", time.time())
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
