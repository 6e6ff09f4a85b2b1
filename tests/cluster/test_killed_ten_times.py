"""Sampling, training and scoring through ten SIGKILLs at random moments: drivers, actors and whole nodes, real engines and raylets.

Only the command line is used, as an operator would who starts a job again when its driver is gone. What a killed actor or node does
to a job is the job's own business: it must end well without being started again.
"""

import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from ray_nodes import Node, RayNodes, ray_nodes
from tiny_labels import tiny_labels, write_labels

from firewall_ray.config.run import load_config
from firewall_ray.router.card import load_card
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.store.layout import ArtifactStore

pytestmark = [pytest.mark.slow, pytest.mark.long]

SEED = 10
KINDS = ("driver", "actor", "node")
NUM_KILLS = {"sample": 4, "train_router": 3, "score": 3}  # ten
JOB_S = 240.0  # a job that takes longer goes on for ever

NUM_QUERIES = 1_200
NUM_SAMPLES = 4
EPOCHS = 6
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 2_000, 101, 8_000  # scoring has all three


class Machines:
    """Two nodes that work; each that is killed is replaced, as an autoscaler does."""

    def __init__(self, nodes: RayNodes, draw: random.Random) -> None:
        self.nodes = nodes
        self._draw = draw
        self._workers: list[Node] = [self._add() for _ in range(2)]

    def _add(self) -> Node:
        return self.nodes.add(num_cpus=4)

    def kill_node(self) -> str:
        victim = self._workers.pop(self._draw.randrange(len(self._workers)))
        self.nodes.kill(victim)
        self._workers.append(self._add())
        return "a node"

    def kill_actor(self) -> str | None:
        """One of the processes that do a job's work on the nodes. None where there is none at this moment."""
        busy = [process for node in self._workers for process in _busy(node)]
        if not busy:
            return None
        name, victim = self._draw.choice(busy)
        victim.kill()
        return name


def _busy(node: Node) -> list[tuple[str, psutil.Process]]:
    """Ray writes what a worker is doing into its command line."""
    found = []
    for process in psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True):
        try:
            name = " ".join(process.cmdline())
        except psutil.Error:  # it has just ended
            continue
        if name.startswith("ray::") and not name.startswith("ray::IDLE"):
            found.append((name, process))
    return found


@pytest.fixture
def machines() -> Iterator[Machines]:
    with ray_nodes() as nodes:
        yield Machines(nodes, random.Random(SEED))


class Jobs:
    """Runs `python jobs/<verb>.py`, and kills it and what works for it."""

    def __init__(self, machines: Machines, folder: Path, draw: random.Random) -> None:
        self._machines = machines
        self._folder = folder
        self._draw = draw
        self.kills: list[str] = []
        self._num_started = 0

    def undisturbed(self, verb: str, *arguments: str) -> float:
        """The seconds it took."""
        started = time.monotonic()
        self._end(*self._start(verb, *arguments))
        return time.monotonic() - started

    def disturbed(self, verb: str, *arguments: str, lasts_s: float) -> None:
        """Kills while it runs, `NUM_KILLS` times, each kind at least once. lasts_s: without them."""
        kinds = [*KINDS, *self._draw.choices(KINDS, k=NUM_KILLS[verb] - len(KINDS))]
        self._draw.shuffle(kinds)
        job, log = self._start(verb, *arguments)
        while kinds:
            try:
                job.wait(lasts_s * self._draw.uniform(0.1, 0.7))
            except subprocess.TimeoutExpired:
                if (victim := self._kill(kinds[0], job)) is not None:
                    self.kills.append(f"{verb}: {victim}")
                    kinds.pop(0)
            if job.poll() is not None:
                assert job.returncode in (0, -9), f"{self.kills}\n{log.read_text()[-4_000:]}"
                if job.returncode:  # the kill of a driver; whoever watches over it starts it again
                    job, log = self._start(verb, *arguments)
                elif kinds:  # done before its last kill: once more from the start
                    job, log = self._start(verb, *arguments, "--force")
        self._end(job, log)

    def _start(self, verb: str, *arguments: str) -> "tuple[subprocess.Popen[bytes], Path]":
        self._num_started += 1
        log = self._folder / f"{self._num_started:02}-{verb}.log"
        return self._machines.nodes.job(verb, *arguments, log=log), log

    def _end(self, job: "subprocess.Popen[bytes]", log: Path) -> None:
        try:
            assert job.wait(JOB_S) == 0, f"{self.kills}\n{log.read_text()[-4_000:]}"
        finally:
            job.kill()

    def _kill(self, kind: str, job: "subprocess.Popen[bytes]") -> str | None:
        if kind == "node":
            return self._machines.kill_node()
        if kind == "actor":
            return self._machines.kill_actor()
        job.kill()
        job.wait()
        return "the driver"


def write_config(folder: Path) -> list[str]:
    """A run with queries and labels; what each job is told."""
    model = {"device": "cpu", "dtype": "float32", "engine_kwargs": {"enforce_eager": True}}
    backbone = {"path": None, "tokenizer": "quickstart/models/weak", "hidden_size": 64, "num_layers": 1, "intermediate_size": 64}
    raw = {
        "root": str(folder / "run"),
        "queries": {"tasks": {"tiny_world": {"num_train": NUM_QUERIES, "num_validation": 0, "num_test": 0, "seed": 11}}},
        "models": {
            "weak": {**model, "path": "quickstart/models/weak", "replicas": {"min": 2, "max": 2}},
            "strong": {**model, "path": "quickstart/models/strong"},
        },
        "sampling": {"num_samples": NUM_SAMPLES, "batch_size": 16, "num_batches_in_flight": 2},
        "router": {
            "designs": ["soft_block"],
            "backbone": backbone,
            "epochs": EPOCHS,
            "batch_size": 64,
            "learning_rate": 2e-3,
            "max_length": 64,
            "precision": "fp32",
            "num_workers": 2,
            "device": "cpu",
        },
        "scoring": {"device": "cpu", "batch_size": 16, "replicas": {"min": 2, "max": 2}},
        "evaluation": {"num_bootstrap": 50},
    }
    folder.mkdir()
    path = folder / "config.yaml"
    path.write_text(json.dumps(raw))
    config = load_config(path)
    store = ArtifactStore(config.root)
    run_prepare_queries(config, store)
    write_labels(store, tiny_labels(NUM_TRAIN, NUM_VALIDATION, NUM_TEST))
    return ["--config", str(path)]


def by_query(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Fails where a query comes twice."""
    rows = {row["query_id"]: row for row in table.to_pylist()}
    assert len(rows) == len(table)
    return rows


def assert_same_samples(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    """Every query once, with all its samples and no error, and the same greedy answer; what was drawn depends on the batches."""
    assert found.keys() == expected.keys()
    for query_id, row in found.items():
        assert row["error"] is None
        assert len(row["texts"]) == NUM_SAMPLES
        if expected[query_id]["greedy_margin"] > 1e-3:  # else a batch of another size may break a tie differently
            assert row["greedy_text"].split()[:1] == expected[query_id]["greedy_text"].split()[:1]


def scores(store: ArtifactStore) -> dict[str, float]:
    rows = by_query(store.scores("soft_block").require().read())
    return {query_id: row["p_weak"] for query_id, row in sorted(rows.items())}


@pytest.mark.timeout(2_400)
def test_ten_kills_change_neither_rows_nor_scores(machines: Machines, tmp_path: Path) -> None:
    jobs = Jobs(machines, tmp_path, random.Random(SEED))
    quiet, shaken = write_config(tmp_path / "quiet"), write_config(tmp_path / "shaken")
    quiet_store, shaken_store = (ArtifactStore(str(tmp_path / name / "run")) for name in ("quiet", "shaken"))

    sample_s = jobs.undisturbed("sample", *quiet, "--model", "weak")
    jobs.disturbed("sample", *shaken, "--model", "weak", lasts_s=sample_s)
    expected = by_query(quiet_store.samples("weak").require().read())
    assert len(expected) == NUM_QUERIES
    assert_same_samples(by_query(shaken_store.samples("weak").require().read()), expected)

    train_s = jobs.undisturbed("train_router", *quiet)
    jobs.disturbed("train_router", *shaken, lasts_s=train_s)
    quiet_card, shaken_card = (load_card(store.router("soft_block").require()) for store in (quiet_store, shaken_store))
    assert (quiet_card.num_train, quiet_card.num_validation) == (NUM_TRAIN, NUM_VALIDATION)
    assert (shaken_card.num_train, shaken_card.num_validation) == (NUM_TRAIN, NUM_VALIDATION)
    # The same rows in the same order, each epoch once: the losses are the same but for the order in which floats are added.
    assert [epoch.epoch for epoch in shaken_card.history] == list(range(1, EPOCHS + 1))
    losses = [[epoch.train_bce for epoch in card.history] for card in (shaken_card, quiet_card)]
    np.testing.assert_allclose(*losses, rtol=1e-3)

    score_s = jobs.undisturbed("score", *quiet)
    jobs.disturbed("score", *shaken, lasts_s=score_s)
    by_quiet, by_shaken = scores(quiet_store), scores(shaken_store)
    assert by_shaken.keys() == by_quiet.keys()
    assert len(by_shaken) == NUM_TRAIN + NUM_VALIDATION + NUM_TEST
    np.testing.assert_allclose(list(by_shaken.values()), list(by_quiet.values()), atol=1e-3)

    assert len(jobs.kills) == 10, jobs.kills
