"""The HTTP engine against a real server: vLLM's own OpenAI-compatible one, with the shipped weak model."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from quickstart_models import exact_pass_rates
from test_sampling import NUM_SAMPLES, pass_rates, settings

from firewall_ray.config.run import RunConfig
from firewall_ray.errors import EngineDied
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.stages.sample import run_sampling
from firewall_ray.store.layout import ArtifactStore

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "quickstart/models/weak", "--port", str(port)]
    command += [
        "--host",
        "127.0.0.1",
        "--dtype",
        "float32",
        "--enforce-eager",
        "--served-model-name",
        "weak",
        "--api-key",
        "sesame",
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    log_path = tmp_path_factory.mktemp("server") / "log"
    with log_path.open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 240
    while True:
        assert process.poll() is None, log_path.read_text()[-3_000:]
        assert time.monotonic() < deadline, "the server did not come up"
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                break
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    yield f"{url}/v1"
    process.terminate()
    process.wait(30)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_served_model_gives_the_same_rows_as_vllm_in_the_cluster(
    ray_cluster: None, server_url: str, tmp_path: Path, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "sesame")
    model = {"engine": "openai", "base_url": server_url, "model": "weak", "api": api, "api_key_env": "THE_KEY"}
    raw = settings(tmp_path, 100)
    raw["models"]["served"] = model
    config = RunConfig.model_validate(raw)
    store = ArtifactStore(config.root)
    run_prepare_queries(config, store)
    (result,) = run_sampling(config, store, models=["served"])
    assert (result["num_rows"], result["num_errors"]) == (100, 0)
    rows = store.samples("served").read().to_pylist()
    assert all(len(row["texts"]) == NUM_SAMPLES and 0 <= row["greedy_margin"] <= 1 for row in rows)
    if api == "completions":  # a chat wraps the prompt into the template once more, which the models were not trained on
        queries = store.queries().read().to_pylist()
        exact = exact_pass_rates("weak", queries)
        rates = pass_rates(store, "served")
        observed = np.array([rates[query["query_id"]] for query in queries])
        simulated = np.random.default_rng(0).binomial(NUM_SAMPLES, exact, (2_000, len(exact))) / NUM_SAMPLES
        low, high = np.quantile(simulated.mean(axis=1), [0.0005, 0.9995])
        assert low <= observed.mean() <= high


def test_a_server_that_is_gone_ends_the_job_with_its_address_and_loses_nothing(ray_cluster: None, tmp_path: Path) -> None:
    raw = settings(tmp_path, 10)
    raw["models"]["served"] = {"engine": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "weak", "max_attempts": 1}
    config = RunConfig.model_validate(raw)
    store = ArtifactStore(config.root)
    run_prepare_queries(config, store)
    with pytest.raises(EngineDied, match=r"http://127\.0\.0\.1:9/v1 does not answer any more.*run the same command again"):
        run_sampling(config, store, models=["served"])
    assert store.samples("served").state() == "unfinished"
