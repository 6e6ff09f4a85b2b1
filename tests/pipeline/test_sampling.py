"""Sampling for real: vLLM on Ray Data actors, checked against exact probabilities, and killed in the middle."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from quickstart_models import exact_pass_rates
from transformers import AutoModelForCausalLM, AutoTokenizer

from firewall_ray.config.models import VllmModelConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.engines.rows import SamplingSpec
from firewall_ray.engines.vllm import VllmSampler
from firewall_ray.errors import ArtifactError, EngineDied, ModelError, TaskError
from firewall_ray.stages.extend_truncated import run_extension
from firewall_ray.stages.grade import run_grading
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.stages.sample import run_sampling
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.parts import parts_of

pytestmark = pytest.mark.slow

NUM_SAMPLES = 32


def settings(root: Path | str, num_queries: int, **sampling: Any) -> dict[str, Any]:
    model = {"device": "cpu", "dtype": "float32", "engine_kwargs": {"enforce_eager": True}}
    return {
        "root": str(root),
        "queries": {"tasks": {"tiny_world": {"num_train": num_queries, "num_validation": 0, "num_test": 0, "seed": 11}}},
        "models": {key: {"path": f"quickstart/models/{key}", **model} for key in ("weak", "strong")},
        "sampling": {"num_samples": NUM_SAMPLES, **sampling},
        "ray": {"num_cpus": 8, "dashboard": False, "object_store_memory_gib": 0.5},
    }


def prepared(root: Path, num_queries: int, **sampling: Any) -> tuple[RunConfig, ArtifactStore]:
    config = RunConfig.model_validate(settings(root, num_queries, **sampling))
    store = ArtifactStore(config.root)
    run_prepare_queries(config, store)
    return config, store


def pass_rates(store: ArtifactStore, model: str) -> dict[str, float]:
    answers = {q["query_id"]: json.loads(q["reference"])["answer"] for q in store.queries().read().to_pylist()}
    rows = store.samples(model).read().to_pylist()
    return {row["query_id"]: float(np.mean([text == answers[row["query_id"]] for text in row["texts"]])) for row in rows}


@pytest.fixture(scope="module")
def sampled(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """600 queries sampled with both models, once for the tests that only read."""
    config, store = prepared(tmp_path_factory.mktemp("sampled"), 600)
    results = run_sampling(config, store)
    assert [result["action"] for result in results] == ["run", "run"]
    return store


@pytest.mark.parametrize("model", ["weak", "strong"])
def test_pass_rates_agree_with_the_exact_answer_probabilities_within_binomial_error(sampled: ArtifactStore, model: str) -> None:
    queries = sampled.queries().read().to_pylist()
    rates = pass_rates(sampled, model)
    observed = np.array([rates[query["query_id"]] for query in queries])
    exact = exact_pass_rates(model, queries)

    # What binomial sampling alone would give, from 2,000 simulated runs of the same size.
    simulated = np.random.default_rng(0).binomial(NUM_SAMPLES, exact, (2_000, len(exact))) / NUM_SAMPLES
    for statistic in (lambda r: (r - exact).mean(axis=-1), lambda r: np.abs(r - exact).mean(axis=-1)):
        low, high = np.quantile(statistic(simulated), [0.0005, 0.9995])
        assert low <= statistic(observed) <= high
    # And no single query is off by more than chance allows among 600.
    assert np.abs(observed - exact).max() <= np.abs(simulated - exact).max()


def test_every_row_keeps_the_contract(sampled: ArtifactStore) -> None:
    rows = sampled.samples("weak").read().to_pylist()
    assert len({row["query_id"] for row in rows}) == len(rows) == 600
    for row in rows:
        assert row["error"] is None
        assert len(row["texts"]) == len(row["num_generated_tokens"]) == len(row["finish_reasons"]) == NUM_SAMPLES
        assert set(row["finish_reasons"]) <= {"stop", "length"}
        assert all(1 <= count <= 24 for count in row["num_generated_tokens"])
        assert 0 <= row["greedy_margin"] <= 1


def test_greedy_answers_and_margins_are_those_of_transformers(sampled: ArtifactStore) -> None:
    tokenizer = AutoTokenizer.from_pretrained("quickstart/models/strong")
    model = AutoModelForCausalLM.from_pretrained("quickstart/models/strong", dtype=torch.float32)
    prompts = {query["query_id"]: query["prompt"] for query in sampled.queries().read().to_pylist()}
    for row in sampled.samples("strong").read().to_pylist()[:50]:
        inputs = tokenizer(prompts[row["query_id"]], return_tensors="pt")
        assert row["num_prompt_tokens"] == inputs["input_ids"].shape[1]
        first = torch.softmax(model(**inputs).logits[0, -1], dim=-1).topk(2).values
        margin = (first[0] - first[1]).item()
        assert row["greedy_margin"] == pytest.approx(margin, abs=1e-3)
        if margin > 1e-3:  # else the two engines may break a tie differently
            output = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            assert row["greedy_text"].split()[:1] == tokenizer.decode(output, skip_special_tokens=True).split()[:1]


def test_only_new_queries_are_sampled_and_with_retry_errors_the_failed_ones(ray_cluster: None, tmp_path: Path) -> None:
    config, store = prepared(tmp_path, 90, batch_size=16)
    (first,) = run_sampling(config, store, models=["weak"], limit=40)
    samples = store.samples("weak")
    (path,) = samples.files()
    rows = samples.read().to_pylist()
    failed = [dict.fromkeys(rows[3]) | {key: rows[3][key] for key in ("query_id", "task", "model")} | {"error": "HTTP 503"}]
    pq.write_table(pa.Table.from_pylist(rows[:3] + failed + rows[4:], schema=samples.schema), path)
    assert run_sampling(config, store, models=["weak"], limit=40)[0]["action"] == "skip"

    (second,) = run_sampling(config, store, models=["weak"], retry_errors=True)
    assert (first["num_rows"], second["num_rows"], second["num_errors"], second["action"]) == (40, 90, 0, "resume")
    assert second["num_rows_made"] == 51
    again = {row["query_id"]: row["texts"] for row in store.samples("weak").read().to_pylist()}
    assert {row["query_id"] for row in rows if again[row["query_id"]] != row["texts"]} <= {rows[3]["query_id"]}
    (third,) = run_sampling(config, store, models=["weak"], retry_errors=True)
    assert third["action"] == "skip"

    changed = RunConfig.model_validate(settings(tmp_path, 90, batch_size=16, temperature=0.5))
    with pytest.raises(ArtifactError, match=r"temperature: 1\.0 there, 0\.5 now"):
        run_sampling(changed, store, models=["weak"])


def test_a_killed_engine_is_restarted_and_its_rows_are_sampled_again(ray_cluster: None, tmp_path: Path) -> None:
    config, store = prepared(tmp_path, 400, batch_size=16, num_batches_in_flight=2)
    killer = threading.Thread(target=lambda: [process.kill() for process in wait_for(lambda: engines_at_work(store, 32))])
    killer.start()
    (result,) = run_sampling(config, store, models=["weak"])
    killer.join()
    ids = [row["query_id"] for row in store.samples("weak").read(["query_id"]).to_pylist()]
    assert len(ids) == len(set(ids)) == result["num_rows"] == 400
    assert result["num_errors"] == 0


def test_an_engine_that_dies_at_every_start_ends_the_job_with_the_reason(ray_cluster: None, tmp_path: Path) -> None:
    config, store = prepared(tmp_path, 8, max_restarts=1)
    weak = config.models["weak"].model_copy(update={"engine_kwargs": {"enforce_eager": True, "load_format": "no_such_format"}})
    config = config.model_copy(update={"models": {**config.models, "weak": weak}})
    with pytest.raises(EngineDied, match="'weak'"):
        run_sampling(config, store, models=["weak"])
    assert store.samples("weak").state() == "unfinished"


@pytest.mark.long  # tests/cluster/test_killed_ten_times.py kills drivers too, of all stages
def test_a_killed_driver_leaves_work_that_the_next_run_completes(tmp_path: Path) -> None:
    _, store = prepared(tmp_path / "run", 360, batch_size=16)
    config_file = tmp_path / "config.yaml"
    config_file.write_text(json.dumps(settings(tmp_path / "run", 360, batch_size=16)))
    command = [sys.executable, "jobs/sample.py", "--config", str(config_file), "--model", "weak"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}

    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    wait_for(lambda: 64 <= len(done_so_far(store)) < 260, give_up=lambda: driver.poll() is not None)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(5)  # the local Ray notices that its driver is gone
    before = done_so_far(store)
    assert 0 < len(before) < 360
    assert store.samples("weak").state() == "unfinished"

    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    wait_for(lambda: len(done_so_far(store)) > len(before), give_up=lambda: driver.poll() is not None)
    told_at = time.monotonic()
    driver.terminate()
    assert driver.wait(60) == 128 + signal.SIGTERM
    assert time.monotonic() - told_at < 15  # Ray's own shutdown takes some of them; batches in flight would take a minute
    before = done_so_far(store)

    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    (stage,) = json.loads(finished.stdout.splitlines()[-1])["stages"]
    assert (stage["action"], stage["num_rows"], stage["num_errors"]) == ("resume", 360, 0)
    rows = store.samples("weak").read().to_pylist()
    assert len(rows) == len({row["query_id"] for row in rows}) == 360
    after = {row["query_id"]: row["texts"] for row in rows}
    assert before.items() <= after.items()  # what was done was not done again
    assert len(store.samples("weak").files()) == 1


def test_a_prompt_longer_than_the_context_is_named_before_an_engine_starts(ray_cluster: None, tmp_path: Path) -> None:
    config, store = prepared(tmp_path, 5)
    table = store.queries().read()
    prompts = table["prompt"].to_pylist()
    prompts[3] = "Question: " + "9 " * 200 + "\nAnswer: "
    path = store.queries().files()[0]
    pq.write_table(table.set_column(table.schema.get_field_index("prompt"), "prompt", pa.array(prompts)), path)
    query_id = table["query_id"][3].as_py()
    with pytest.raises(TaskError, match=rf"{query_id}.*tokens.*models\.weak has a context of 128"):
        run_sampling(config, store)
    assert store.samples("weak").state() == store.samples("strong").state() == "missing"


def test_a_missing_model_folder_is_named_before_an_engine_starts(ray_cluster: None, tmp_path: Path) -> None:
    config, store = prepared(tmp_path, 5)
    strong = config.models["strong"].model_copy(update={"path": "no/such/folder"})
    config = config.model_copy(update={"models": {**config.models, "strong": strong}})
    with pytest.raises(ModelError, match=r"models\.strong\.path: no model at 'no/such/folder'"):
        run_sampling(config, store)
    assert store.samples("weak").state() == store.samples("strong").state() == "missing"


def done_so_far(store: ArtifactStore) -> dict[str, list[str]]:
    """What lies on the disk while the job runs: texts by query."""
    return {row["query_id"]: row["texts"] for row in parts_of(store.samples("weak")).read(["query_id", "texts"]).to_pylist()}


def engines_at_work(store: ArtifactStore, num_rows: int) -> list[psutil.Process]:
    """This process' sampling actors, once they have written something."""
    if len(done_so_far(store)) < num_rows:
        return []
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "MapBatches(VllmSampler)" in " ".join(child.cmdline())]


def wait_for(condition: Callable[[], Any], timeout_s: float = 240, give_up: Callable[[], bool] = lambda: False) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert not give_up(), "the process ended before the condition came true"
        time.sleep(0.05)
    raise TimeoutError("the condition never came true")


def test_tokens_move_before_the_first_batch_ends_and_the_engine_says_what_it_does(ray_cluster: None) -> None:
    """One batch of everything: counted by the batch, nothing would be told before all of it is done."""

    @ray.remote(num_cpus=1)  # an engine that fails ends its process, which should not be this one
    def sampled_and_told():  # type: ignore[no-untyped-def]  # pickled by value, without the module's names for types
        told = []

        class Told:
            def __getattr__(self, name):  # type: ignore[no-untyped-def]
                return SimpleNamespace(remote=lambda *arguments: told.append((name, *arguments)))

        model = {"path": "quickstart/models/weak", "device": "cpu", "dtype": "float32", "max_num_seqs": 32}
        spec = SamplingSpec(num_samples=16, temperature=1.0, top_p=1.0, seed=0, stop={"t": ()}, max_tokens={"t": 24})
        sampler = VllmSampler("weak", VllmModelConfig(**model, engine_kwargs={"enforce_eager": True}), spec, Told())
        queries = {"query_id": [f"q{i}" for i in range(300)], "task": ["t"] * 300, "prompt": ["What is 1?\nAnswer:"] * 300}

        async def run():  # type: ignore[no-untyped-def]
            return await anext(sampler(pa.table(queries)))

        num_tokens = sum(map(sum, asyncio.run(run())["num_generated_tokens"].to_pylist()))
        return told, num_tokens

    told, num_tokens = ray.get(sampled_and_told.remote(), timeout=300)
    amounts = [call[2] for call in told if call[0] == "add"]
    first_row = next(number for number, each in enumerate(amounts) if each.get("rows"))
    before = [each for each in amounts[:first_row] if each.get("tokens")]
    assert before, "nothing was told before the first row was whole"
    assert sum(each.get("rows", 0) for each in amounts) == 300
    assert sum(each.get("work", 0) for each in amounts) == pytest.approx(300, abs=1)
    assert num_tokens <= sum(each.get("tokens", 0) for each in amounts) <= num_tokens + 300 * 24  # the greedy ones too
    states = [call[3] for call in told if call[0] == "state"]
    assert list(dict.fromkeys(states))[:1] == ["loading the model"]
    assert {"first batch", "sampling"} <= set(states)
    assert any(call[4].get("running") for call in told if call[0] == "state")


# More room ----------------------------------------------------------------------------------------------------------


def test_answers_that_were_cut_off_are_sampled_again_with_more_room_and_all_of_their_query_s(
    ray_cluster: None, tmp_path: Path
) -> None:
    data = settings(tmp_path, 40, num_samples=8, max_tokens=2, extend_truncated=24)
    config = RunConfig.model_validate({**data, "pair": {"weak": "weak", "strong": "weak"}})
    store = ArtifactStore(config.root)
    run_prepare_queries(config, store)
    run_sampling(config, store)
    run_grading(config, store)
    samples, grades = by_id(store.samples("weak")), by_id(store.grades("weak"))
    cut = {i for i, row in grades.items() if "truncated" in [*row["verdicts"], row["greedy_verdict"]]}
    assert 0 < len(cut) < 40  # two tokens are enough for "7" and EOS

    sampling, grading = run_extension(config, store)
    assert (sampling["num_rows"], sampling["num_rows_made"], grading["rows"]) == (40, len(cut), 40)
    longer, regraded = by_id(store.samples("weak")), by_id(store.grades("weak"))
    for query_id in samples:
        if query_id in cut:
            assert set(longer[query_id]["finish_reasons"]) == {"stop"}  # 24 tokens are enough for every answer
        else:
            assert (longer[query_id], regraded[query_id]) == (samples[query_id], grades[query_id])
    rates = [np.mean([rows[query_id]["correct"] for query_id in cut]) for rows in (grades, regraded)]
    assert [sampling["pass_rate_before"], sampling["pass_rate_after"]] == pytest.approx(rates, abs=1e-4)
    assert rates[0] < rates[1]
    # Nothing is left to extend, nothing to sample or grade.
    assert run_extension(config, store) == []
    assert [result["action"] for result in (*run_sampling(config, store), *run_grading(config, store))] == ["skip", "skip"]


def by_id(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {row["query_id"]: row for row in dataset.read().to_pylist()}
