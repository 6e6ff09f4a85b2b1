"""From `ray start --head` to an application that is watched: one job that samples, trains and deploys, requests of all kinds, and
a real Prometheus that has an answer to everything which the dashboard and the alert rules ask.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_server import Prometheus, dashboard_queries, prometheus, rule_queries
from ray_head import free_port, ray_head
from running_app import processes_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.long]

NOT_HERE = {"GPU use": "there is no GPU", "GPU memory": "there is no GPU"}
# Whoever is on call should hear of what is done to the application below.
RAISED = {"RouterFailingOpen", "ModelsGiveNoAnswer", "Fallbacks", "RequestsRefusedForLoad", "DecisionLogDropping"}
FORGOTTEN_AFTER_S = 20  # Ray's exporter drops a gauge that nobody set for as long
MAX_IN_FLIGHT = 4
# What no check before the engine foresees: a chat template that refuses one question. Its row gets an error.
REFUSED = "What is refused?"
REFUSES = "{% if messages[-1]['content'] == '" + REFUSED + "' %}{{ raise_exception('refused') }}{% endif %}"


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Ray's sockets lie in it, and Unix allows their paths 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_every_query_of_dashboard_and_alerts_is_answered_once_the_pipeline_ran_and_the_application_was_used(
    tmp_path: Path, ray_folder: Path
) -> None:
    config = write_config(tmp_path)
    queries = dashboard_queries() | rule_queries()
    missing = {name: query for name, query in queries.items() if name.partition(":")[0] not in NOT_HERE}
    missing |= {f"{alert} is raised": f'ALERTS{{alertname="{alert}"}}' for alert in RAISED}

    def no_more_missing(metrics: Prometheus) -> bool:
        for name in [name for name, query in missing.items() if metrics.knows(query)]:
            del missing[name]
        return not missing

    discovery_file = ray_folder / "prom_metrics_service_discovery.json"
    with ray_head(f"--temp-dir={ray_folder}") as head, prometheus(discovery_file, tmp_path) as metrics:
        port = free_port()
        wait_until(lambda: takes_job(head, config, serve_config(port, tmp_path)), "the head takes the job")
        url = f"http://127.0.0.1:{port}"
        decisions = tmp_path / "run" / "decisions"
        decisions.touch()  # where a folder should be: the decision log cannot be written

        def used_until_all_is_known() -> bool:
            use(url)
            break_for_a_while(url, ray_folder)
            if decisions.is_file() and metrics.knows('ALERTS{alertname="DecisionLogDropping"}'):
                decisions.unlink()
            return no_more_missing(metrics)

        try:
            wait_until(used_until_all_is_known, "every query has an answer", timeout_s=300)
        except AssertionError:
            pytest.fail(f"No answer to: {missing}")
        for query in queries.values():
            metrics.series(query)  # those of NOT_HERE parse too
        for rule in metrics.rules():
            assert rule["health"] == "ok", rule
        for gauge in ("ray_firewall_score_drift", "ray_firewall_router_config_refused"):
            wait_until(partial(stands, metrics, gauge), f"{gauge} stands")


# The run -------------------------------------------------------------------------------------------------------------


def write_config(folder: Path) -> Path:
    """The quickstart with fewer queries, one of which fails; all that has metrics of its own is on."""
    config = yaml.safe_load(Path("jobs/configs/quickstart.yaml").read_text())
    config["root"] = str(folder / "run")
    (folder / "refused").mkdir()
    (folder / "refused" / "train.jsonl").write_text(json.dumps({"question": REFUSED, "answer": "5"}) + "\n")
    config["queries"]["tasks"] = {
        "tiny_world": {"num_train": 300, "num_validation": 80, "num_test": 120},
        "custom": {"refused": {"source": str(folder / "refused"), "max_tokens": 4}},
    }
    for model in config["models"].values():
        model["chat_template"] = REFUSES + (Path(model["path"]) / "chat_template.jinja").read_text()
    config["sampling"]["num_samples"] = 8
    config["router"] |= {"designs": ["soft_block"], "epochs": 2}
    config["evaluation"] = {"num_bootstrap": 100}
    config["serving"] |= {
        "budget_control": {"window": 200},
        "decision_log": {"rows_per_file": 1},
        "prices": {"weak": {"prompt": 1, "completion": 1}, "strong": {"prompt": 9, "completion": 9}},
        "max_in_flight": MAX_IN_FLIGHT,
        "router_timeout_s": 1,
        "first_token_timeout_s": 3,
        "answer_timeout_s": 3,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def serve_config(port: int, folder: Path) -> Path:
    """The shipped one on a free port."""
    shipped = yaml.safe_load(Path("serve_app/serve_config.yaml").read_text())
    shipped["http_options"]["port"] = port
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(shipped))
    return path


def takes_job(head: dict[str, str], config: Path, serve_config: Path) -> bool:
    """Run the pipeline and deploy its router, to the end; False where the head is still coming up."""
    command = [sys.executable, "jobs/submit.py", "--config", str(config), "--serve-config", str(serve_config)]
    done = subprocess.run(command, env=head, capture_output=True, text=True, timeout=600)
    if "does not take the job" in done.stderr:
        return False
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    return True


# Traffic -------------------------------------------------------------------------------------------------------------


def chat(url: str, model: str, **body: Any) -> httpx.Response:
    body |= {"model": model, "messages": [{"role": "user", "content": "What is 2 plus 3?"}], "max_tokens": 4}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def use(url: str) -> None:
    """Routed requests that either model answers, whole and streamed."""
    for model in ("firewall", "firewall-0.0001", "firewall-0.9999"):
        for streams in (False, True):
            chat(url, model, stream=streams)


def break_for_a_while(url: str, ray_folder: Path) -> None:
    """A router that hangs, so that a request fails open; then a strong model that does, while more requests wait for it than are
    let in: one that the weak model answers, some that nobody does, and some that are refused.
    """
    with frozen("Router", ray_folder):
        chat(url, "firewall")
    with frozen("ModelServer:strong", ray_folder), ThreadPoolExecutor(2 * MAX_IN_FLIGHT) as clients:
        chat(url, "firewall-1")
        for _ in range(2 * MAX_IN_FLIGHT):
            clients.submit(chat, url, "strong")


@contextmanager
def frozen(deployment: str, ray_folder: Path) -> Iterator[None]:
    """The replicas of this head's application, for it is not the only one in these tests."""
    replicas = [
        process
        for process in processes_of(deployment)
        if any(str(ray_folder) in word for parent in process.parents() for word in parent.cmdline())
    ]
    for replica in replicas:
        replica.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for replica in replicas:
            replica.send_signal(signal.SIGCONT)


def stands(metrics: Prometheus, gauge: str) -> bool:
    """Whether a gauge that was set once is seen long after."""
    return any(values[-1][0] - values[0][0] > 3 * FORGOTTEN_AFTER_S for values in metrics.series(gauge))
