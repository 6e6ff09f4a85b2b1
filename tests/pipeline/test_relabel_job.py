"""The whole loop for real: live queries, both models on vLLM, a router trained, and Serve's config file where it is better."""

import asyncio
import importlib.util
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import typer
import yaml
from handmade import write
from tiny_labels import tiny_labels, write_labels
from tiny_router import fill_folder
from typer.testing import CliRunner

from firewall_ray.config.base import BackboneConfig
from firewall_ray.config.router import ScoringConfig
from firewall_ray.relabel.stores import RoundStore
from firewall_ray.router.card import load_card
from firewall_ray.schemas import PROMPT_TEMPLATE
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import prompt_id
from firewall_ray.tasks.tiny_world import draw_unique
from serve_app.routing.replica import Router

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
BACKBONE = {"path": None, "tokenizer": "quickstart/models/strong", "hidden_size": 96, "num_layers": 2, "intermediate_size": 192}
MODEL = {"device": "cpu", "dtype": "float32", "max_num_seqs": 64, "engine_kwargs": {"enforce_eager": True}}
NUM_LABELLED, NUM_OF_TASK, NUM_ASKED = 1_000, 16, 40  # questions of tiny_world, in its order; the last ones are new


class Loop:
    """A run whose application has been asked new questions, and the job as a user runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ArtifactStore(str(folder / "run"))
        write_labels(self.store, tiny_labels(num_train=600, num_validation=100, num_test=300))
        bad = self.store.router("soft_block")
        bad.begin({})
        fill_folder(Path(bad.path), BackboneConfig.model_validate(BACKBONE))
        bad.finish({}, {})

        new = list(draw_unique(0, NUM_LABELLED + NUM_ASKED))[NUM_LABELLED:]
        asked = [*(item.question for item in new), *(item.question for item in new[:9]), "Does anybody know?"]
        rows = [{"query_id": prompt_id(PROMPT_TEMPLATE.format(question=text)), "text": text} for text in asked]
        write(self.store.decisions(), rows, schema=pa.schema([("query_id", pa.string()), ("text", pa.string())]))
        # A task of the config asks the first of the new questions, the user says what is right for all but two of the others.
        given = [{"question": item.question, "reference": item.answer, "task": "tiny_world"} for item in new[NUM_OF_TASK:-2]]
        self.references = folder / "references.jsonl"
        self.references.write_text("\n".join(map(json.dumps, given)))
        config = {
            "root": self.store.root,
            "queries": {"tasks": {"tiny_world": {"num_train": NUM_LABELLED + NUM_OF_TASK, "num_validation": 0, "num_test": 0}}},
            "models": {key: {**MODEL, "path": f"quickstart/models/{key}"} for key in ("weak", "strong")},
            "router": {
                "designs": ["soft_block"],
                "backbone": BACKBONE,
                "batch_size": 48,
                "learning_rate": 1.5e-3,
                "max_length": 48,
                "precision": "fp32",
                "zero_stage": 0,
                "num_workers": 1,
                "device": "cpu",
            },
            "scoring": {"device": "cpu"},
            "evaluation": {"num_bootstrap": 200},
            "relabel": {"num_samples": 4},
        }
        self.config_path = folder / "config.yaml"
        self.config_path.write_text(yaml.safe_dump(config))
        self.serve_path = folder / "serve.yaml"
        shutil.copy(REPOSITORY / "serve_app/serve_config.yaml", self.serve_path)

    def run(self, *arguments: str) -> tuple[list[dict[str, Any]], str]:
        """The results of the job's stages, and what a person reads."""
        specification = importlib.util.spec_from_file_location("relabel_job", REPOSITORY / "jobs/relabel.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        app = typer.Typer()
        app.command()(module.main)
        files = ["--config", str(self.config_path), "--references", str(self.references), "--serve-config", str(self.serve_path)]
        done = CliRunner().invoke(app, [*files, *arguments])
        assert done.exit_code == 0, done.stderr[-3_000:]
        return json.loads(done.stdout.splitlines()[-1])["stages"], done.stderr

    def comparison(self, name: str) -> Any:
        return json.loads((self.folder / "run/relabel" / name / "comparison/comparison.json").read_text())


@pytest.fixture(scope="module")
def loop(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    return Loop(tmp_path_factory.mktemp("relabel"))


@pytest.fixture(scope="module")
def first_round(loop: Loop) -> tuple[list[dict[str, Any]], str]:
    """Against a router that was never trained."""
    return loop.run("--name", "may")


def test_a_bad_router_in_service_is_replaced(loop: Loop, first_round: tuple[list[dict[str, Any]], str]) -> None:
    stages, said = first_round
    found = {stage["stage"]: stage for stage in stages}
    assert (found["draw"]["distinct"], found["draw"]["queries"]) == (NUM_ASKED + 1, NUM_ASKED + 1)
    assert (found["references"]["queries"], found["references"]["not_gradable"]) == (NUM_ASKED - 2, 3)
    assert found["references"]["train"] >= NUM_OF_TASK
    assert found["label"]["labels"] == NUM_ASKED - 2
    assert found["fold"]["labels"] == NUM_LABELLED + NUM_ASKED - 2
    comparison = loop.comparison("may")
    assert comparison["is_better"]
    assert comparison["held_out"]["all"]["num_queries"] == 300 + found["references"]["test"]
    assert "soft_block-may is better: +0." in said
    assert "To deploy it: python -m serve_app.deploy --config " in said


def test_the_labels_are_of_real_answers(loop: Loop, first_round: Any) -> None:
    labels = RoundStore(loop.store.root, "may").labels().require().read()
    assert set(labels["num_samples"].to_pylist()) == {4}
    weak, strong = (sum(labels[f"pass_rate_{model}"].to_pylist()) / len(labels) for model in ("weak", "strong"))
    assert 0 < weak < strong < 1


def test_the_file_that_deploys_it_is_taken_by_a_router_replica(loop: Loop, first_round: Any) -> None:
    deployable = yaml.safe_load((loop.folder / "run/relabel/may/comparison/serve_config.yaml").read_text())
    (router,) = deployable["applications"][0]["deployments"]
    card = load_card(loop.store.router("soft_block-may"))
    assert router["user_config"]["version"] == card.version
    replica = Router(loop.store, ScoringConfig(device="cpu"), (card.weak, card.strong), 0, None, "refuse")
    asyncio.run(replica.reconfigure(router["user_config"]))
    assert replica._arms is not None
    assert replica._arms.main.router.predictor.card.design == "soft_block"


def test_the_same_command_again_deploys_and_does_nothing_else(
    loop: Loop, first_round: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_dashboard() as (address, put):
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        stages, said = loop.run("--name", "may", "--deploy")
    assert {stage["action"] for stage in stages} == {"skip"}
    (deployed,) = put
    (application,) = deployed["applications"]
    assert application["args"] == {"config": str(loop.config_path), "root": loop.store.root}
    assert application["deployments"][0]["user_config"]["router"] == "soft_block-may"
    assert deployed["http_options"] == yaml.safe_load(loop.serve_path.read_text())["http_options"]
    assert "Deployed soft_block-may" in said


def test_a_good_router_in_service_is_not_replaced_by_a_worse_one(
    loop: Loop, first_round: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = loop.folder / "run/relabel"
    for part in ("drawn", "queries", "samples", "grades", "labels"):  # the same queries, so that no engine has to start
        shutil.copytree(base / "may" / part, base / "june" / part)
    shutil.copy(base / "may/comparison/serve_config.yaml", loop.serve_path)  # as deployed by the test above
    crippled = [f"--set=router.{key}" for key in ("epochs=1", "learning_rate=1.0e-7")]
    with ray_dashboard() as (address, put):
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        stages, said = loop.run("--name", "june", "--deploy", "--set=relabel.warm_start=false", *crippled)
    assert [stage["action"] for stage in stages][:6] == ["skip"] * 6
    assert put == []
    comparison = loop.comparison("june")
    assert (comparison["in_service"], comparison["is_better"]) == ("soft_block-may", False)
    assert comparison["held_out"]["all"]["difference"]["apgr"]["high"] < 0
    assert "soft_block-may stays: soft_block-june is worse, -0." in said
    assert sorted(path.name for path in (base / "june/comparison").glob("[!_]*")) == ["comparison.json", "comparison.md"]


def test_nothing_of_the_run_was_overwritten(loop: Loop, first_round: Any) -> None:
    assert loop.store.labels().num_rows() == NUM_LABELLED
    assert {"soft_block", "soft_block-may"} <= set(loop.store.children("routers"))
    assert {name for name in loop.store.children("") if not name.startswith("_")} == {"decisions", "labels", "relabel", "routers"}


@contextmanager
def ray_dashboard() -> Iterator[tuple[str, list[Any]]]:
    """What `serve deploy` talks to: its address, and the config files that it was given."""
    put: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # The version, and Serve's state, which the job asks for until the application runs.
            self._answer({"ray_version": ray.__version__, "applications": {"firewall": {"status": "RUNNING"}}})

        def do_PUT(self) -> None:
            put.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._answer({})

        def _answer(self, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", put
    finally:
        server.shutdown()
        server.server_close()
