"""Changing a running application under load, the way `serve deploy` does: another router, another default, a broken config.

The application is the real one, deployed from Serve's config file; only its models are stand-ins, served elsewhere.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import yaml
from running_app import free_port, wait_until
from servable_run import ROUTER, models_elsewhere, prompts_of_split, write_run
from tiny_router import write_router

from firewall_ray.config.run import load_config
from firewall_ray.router.card import CARD_FILE
from firewall_ray.router.predict import RouterPredictor
from firewall_ray.store.layout import ArtifactStore

pytestmark = pytest.mark.slow

APP = "swap"
OTHER, STRANGER = "hard_block", "hard_label"  # another router of the pair, and one of another pair
VERSIONS = {ROUTER: "first", OTHER: "second", STRANGER: "third"}
NUM_CLIENTS = 8
WINDOW = 200


class StandIn(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that says which model was asked."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = json.dumps({"model": body["model"], "choices": [{"index": 0, "text": body["model"]}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Asked:
    """A request, by its number, and its answer."""

    number: int
    prompt: str
    status: int
    headers: httpx.Headers
    text: str


@dataclass
class Application:
    """The application `swap`. predictors: by version."""

    url: str
    config: dict[str, Any]
    prompts: list[str]
    predictors: dict[str, RouterPredictor]
    log_folder: Path
    client: Any

    def deploy(self, user_config: dict[str, Any]) -> None:
        """As `serve deploy` of a file in which only this changed."""
        from ray.serve.schema import ServeDeploySchema

        application = {**self.config, "deployments": [{"name": "Router", "user_config": user_config}]}
        self.client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))

    def decision(self) -> dict[str, Any]:
        """Of /v1/route, about the first prompt."""
        response = httpx.post(f"{self.url}/v1/route", json={"model": "firewall", "prompt": self.prompts[0]}, timeout=60)
        return dict(response.raise_for_status().json())

    def router_pid(self) -> int:
        (replica,) = self.client.get_serve_details()["applications"][APP]["deployments"]["Router"]["replicas"]
        return int(replica["pid"])

    def is_running(self) -> bool:
        application = self.client.get_serve_details()["applications"].get(APP)
        return application is not None and application["status"] == "RUNNING"

    def replicas(self) -> set[int]:
        """The processes of all deployments, those that are about to go among them."""
        deployments = self.client.get_serve_details()["applications"][APP]["deployments"]
        return {int(replica["pid"]) for each in deployments.values() for replica in each["replicas"] if replica["pid"]}

    def upgrade(self, max_answers: int) -> None:
        """As `serve deploy` of a file with other args, for which Serve replaces all replicas; returns when those are gone."""
        from ray.serve.schema import ServeDeploySchema

        before = self.replicas()
        args = {**self.config["args"], "set": [f"serving.max_answers={max_answers}"]}
        self.client.deploy_apps(ServeDeploySchema.model_validate({"applications": [{**self.config, "args": args}]}))
        wait_until(lambda: self.is_running() and not self.replicas() & before, "every replica was replaced")

    def router_log(self) -> str:
        return "".join(path.read_text() for path in self.log_folder.glob(f"serve/replica_{APP}_Router_*.log"))


@dataclass
class Load:
    """Clients that ask one request after the other."""

    application: Application
    answers: list[Asked] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)  # of requests, in the order they are sent
    stops: threading.Event = field(default_factory=threading.Event)

    def client(self) -> None:
        with httpx.Client(base_url=self.application.url, timeout=60) as http:
            while not self.stops.is_set():
                number = next(self.numbers)
                prompt = self.application.prompts[number % len(self.application.prompts)]
                try:
                    response = http.post("/v1/completions", json={"model": "firewall", "prompt": prompt})
                    text = response.json()["choices"][0]["text"] if response.is_success else response.text
                    self.answers.append(Asked(number, prompt, response.status_code, response.headers, text))
                except Exception as e:
                    self.failures.append(e)

    def goes_on(self, num_more: int = 100) -> None:
        """Returns after so many more answers."""
        already = len(self.answers)
        wait_until(lambda: self.failures or len(self.answers) >= already + num_more, "the load went on")


@contextmanager
def load_on(application: Application) -> Iterator[Load]:
    """At the end no request failed, and a score decided every one of them: none failed open because of what was changed."""
    load = Load(application)
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        for _ in range(NUM_CLIENTS):
            clients.submit(load.client)
        try:
            load.goes_on()
            yield load
            load.goes_on()
        finally:
            load.stops.set()
    assert load.failures == []
    assert {(asked.status, asked.headers.get("x-firewall-reason")) for asked in load.answers} == {(200, "score")}
    for asked in load.answers:
        assert asked.text == asked.headers["x-firewall-route"]
        # Of the router that it names, not of the other.
        predictor = application.predictors[asked.headers["x-firewall-router"]]
        assert float(asked.headers["x-firewall-score"]) == pytest.approx(float(predictor.predict([asked.prompt])[0]), abs=1e-3)


def rewrite_card(store: ArtifactStore, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    path = Path(store.router(name).path) / CARD_FILE
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def write_application(folder: Path, models_url: str) -> tuple[str, ArtifactStore]:
    """A run with three routers, models elsewhere and budget control; the path of its config and its store."""
    config_path = Path(write_run(folder))
    raw = yaml.safe_load(config_path.read_text())
    raw["models"] = models_elsewhere(models_url)
    raw["serving"] |= {
        "budget_control": {"window": WINDOW},
        "decision_log": {"seconds_per_file": 3_600, "rows_per_file": 1_000_000},
    }
    config_path.write_text(yaml.safe_dump(raw))
    store = ArtifactStore(load_config(config_path).root)
    for seed, name in enumerate((OTHER, STRANGER), start=2):
        write_router(store, name, seed)
    for name, version in VERSIONS.items():
        rewrite_card(store, name, lambda card, version=version: card.update(version=version))
    rewrite_card(store, STRANGER, lambda card: card["strong"].update(key="stranger"))
    return str(config_path), store


@pytest.fixture(scope="module")
def application(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client

    models = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=models.serve_forever, daemon=True).start()
    config_path, store = write_application(tmp_path_factory.mktemp("run"), f"http://127.0.0.1:{models.server_port}/v1")

    # Other tests of the session may have a Serve that runs.
    ours = _get_global_client(raise_if_no_controller_running=False) is None
    if ours:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
    client = _get_global_client()
    started = Application(
        url=f"http://127.0.0.1:{client.http_config.port}/{APP}",
        config={
            "name": APP,
            "route_prefix": f"/{APP}",
            "import_path": "serve_app.app:build_app",
            "args": {"config": config_path},
        },
        prompts=prompts_of_split(store, "test")[:50],
        predictors={VERSIONS[name]: RouterPredictor(store.router(name).path, num_threads=1) for name in (ROUTER, OTHER)},
        log_folder=Path(ray._private.worker._global_node.get_session_dir_path()) / "logs",
        client=client,
    )
    started.deploy({"router": ROUTER, "strong_fraction": 0.5})
    wait_until(started.is_running, "the application ran")
    yield started
    if ours:
        serve.shutdown()
    else:
        serve.delete(APP)
    models.shutdown()


def test_another_router_takes_over_under_load_without_a_failed_request(application: Application) -> None:
    pid = application.router_pid()
    with load_on(application) as load:
        num_before = len(load.answers)
        application.deploy({"router": OTHER, "strong_fraction": 0.5})
        wait_until(lambda: application.decision()["router"] == "second", "the new router decided")
        now = next(load.numbers)
    assert {asked.headers["x-firewall-router"] for asked in load.answers[:num_before]} == {"first"}
    assert {asked.headers["x-firewall-router"] for asked in load.answers if asked.number > now} == {"second"}
    assert application.router_pid() == pid  # changed in place, not restarted
    wait_until(application.is_running, "Serve had noticed")

    # And back, by naming the version.
    with load_on(application) as load:
        application.deploy({"router": ROUTER, "version": "first", "strong_fraction": 0.5})
        wait_until(lambda: application.decision()["router"] == "first", "the old router decided again")
    assert application.router_pid() == pid


def test_another_default_fraction_is_in_force_under_load_at_once(application: Application) -> None:
    pid = application.router_pid()
    with load_on(application) as load:
        for fraction, route in [(0.0, "weak"), (1.0, "strong")]:
            application.deploy({"router": ROUTER, "strong_fraction": fraction})
            wait_until(lambda f=fraction: application.decision()["strong_fraction"] == f, "the new fraction was in force")
            now = next(load.numbers)
            load.goes_on()
            after = [asked for asked in load.answers if asked.number > now]
            assert {asked.headers["x-firewall-route"] for asked in after} == {route}
    assert application.router_pid() == pid


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"router": "weak_pass_rate", "strong_fraction": 0.9}, "train_router.py"),
        ({"router": STRANGER, "strong_fraction": 0.9}, "trained for weak and stranger"),
        ({"router": OTHER, "version": "tenth", "strong_fraction": 0.9}, "has version second, not tenth"),
        ({"router": ROUTER, "strong_fraction": 9}, "strong_fraction"),
    ],
)
def test_a_broken_config_changes_nothing_under_load_and_the_log_says_why(
    application: Application, broken: dict[str, Any], why: str
) -> None:
    pid, before = application.router_pid(), application.decision()
    num_logged = len(application.router_log())
    with load_on(application) as load:
        application.deploy(broken)
        wait_until(lambda: "is not applied" in application.router_log()[num_logged:], "the log said so")
        time.sleep(1)  # more than a round of Serve's controller, which must not stop the replica now
        load.goes_on()
    assert why in application.router_log()[num_logged:]
    assert application.decision() == before
    assert application.router_pid() == pid
    assert application.is_running()


def test_a_router_replica_that_dies_under_a_refused_config_comes_back_as_it_was(application: Application) -> None:
    """Serve starts it with the config that was refused, over which it died again and again."""
    application.deploy({"router": OTHER, "strong_fraction": 0.4})
    wait_until(lambda: application.decision()["strong_fraction"] == 0.4, "the config was in force")
    num_logged = len(application.router_log())
    application.deploy({"router": STRANGER, "strong_fraction": 0.9})
    wait_until(lambda: "is not applied" in application.router_log()[num_logged:], "it was refused")
    pid = application.router_pid()
    psutil.Process(pid).kill()
    wait_until(lambda: application.decision()["reason"] == "score", "another replica decides")
    decision = application.decision()
    assert (decision["router"], decision["strong_fraction"]) == ("second", 0.4)
    assert application.router_pid() != pid


def test_the_budget_is_held_under_load_where_every_prompt_alone_would_go_strong(application: Application) -> None:
    application.deploy({"router": ROUTER, "strong_fraction": 0.5})
    wait_until(lambda: application.decision()["strong_fraction"] == 0.5, "the fraction was in force")
    predictor = application.predictors["first"]
    scores = predictor.predict(application.prompts)
    lowest = np.argsort(scores)[:10]
    assert (scores[lowest] < predictor.card.quantiles.threshold(0.5).value).all()
    with load_on(replace(application, prompts=[application.prompts[i] for i in lowest])) as load:
        load.goes_on(2 * WINDOW)
    num_strong = sum(asked.headers["x-firewall-route"] == "strong" for asked in load.answers)
    # One stretch of decisions, with no others between them: off by at most 2% of a window.
    assert abs(num_strong - 0.5 * len(load.answers)) <= 0.02 * WINDOW


def test_an_upgrade_under_load_fails_no_request_and_loses_no_decision(application: Application) -> None:
    """Rows are written when a replica ends, and at no other time here."""
    decisions = ArtifactStore(str(Path(application.config["args"]["config"]).parent)).decisions()
    application.upgrade(100)  # so that what the tests before left is written
    num_before = decisions.read().num_rows
    with load_on(application) as load:
        before = application.replicas()
        application.upgrade(101)
    assert len(before & application.replicas()) == 0
    application.upgrade(102)
    assert decisions.read().num_rows - num_before == len(load.answers)
