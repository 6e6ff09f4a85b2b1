"""Sampling job against the bare engine: generated tokens/s of the job's steady state over `vllm.LLM.generate`.

What bounds the job is vLLM itself: the same model, engine arguments, prompts and n go through one call of `LLM.generate` in
a process of its own, after a warm-up. The job is the real one (Ray Data, actor pool, parts, Parquet), measured between
the rows that end its first and its last tenth, so that starting Ray and the engine is left out on both sides.

The job also generates one greedy answer a query, with logprobs; the headline counts those tokens, the second ratio does not.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from typing import Annotated, Any

import typer
from arrivals import arrivals, middle

from firewall_ray.cluster.connect import connected
from firewall_ray.config.models import VllmModelConfig
from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.engines.checkpoint import Checkpoint
from firewall_ray.engines.vllm import engine_args
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.stages.sample import run_sampling
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore

WARM_UP_PROMPTS = 64


def job_rate(config: RunConfig, store: ArtifactStore, model: str) -> tuple[float, float]:
    """(tokens/s with the greedy answers, tokens/s of the samples alone) over the middle eight tenths of what comes back."""
    with connected(config.ray), arrivals() as seen:
        run_sampling(config, store, models=[model])
    spec = config.models[model]
    assert isinstance(spec, VllmModelConfig)
    tokenizer = Checkpoint.of(spec).tokenizer()
    tables, elapsed_s = middle(seen, 0.1, 0.9)
    sampled = greedy = 0
    for table in tables:
        for row in table.select(["num_generated_tokens", "greedy_text"]).to_pylist():
            sampled += sum(row["num_generated_tokens"])
            greedy += len(tokenizer(row["greedy_text"])["input_ids"]) + 1  # and EOS
    return (sampled + greedy) / elapsed_s, sampled / elapsed_s


def bare_rate(config: RunConfig, store: ArtifactStore, model: str) -> float:
    """Tokens/s of one `LLM.generate` call over all prompts, in a process of its own with the environment of an engine's actor."""
    spec = config.models[model]
    assert isinstance(spec, VllmModelConfig)
    request = {
        "engine": engine_args(spec, config.sampling.seed),
        "prompts": store.queries().read(["prompt"])["prompt"].to_pylist(),
        "n": config.sampling.num_samples,
    }
    environment = {**os.environ, **bare_environment(spec)}
    script = [sys.executable, __file__, "--bare"]
    done = subprocess.run(script, input=json.dumps(request), env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def bare_environment(spec: VllmModelConfig) -> dict[str, str]:
    """What an engine's actor has."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(spec.kv_cache_gib)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        # What Ray gives the actor. Set before the process starts: torch reads it once, when it is imported.
        "OMP_NUM_THREADS": str(max(1, int(spec.num_cpus))),
    }


def bare(request: dict[str, Any]) -> float:
    from vllm import LLM, SamplingParams

    llm = LLM(**request["engine"])
    params = SamplingParams(n=request["n"], temperature=1.0, max_tokens=24)
    llm.generate(request["prompts"][:WARM_UP_PROMPTS], params, use_tqdm=False)
    started = time.perf_counter()
    outputs = llm.generate(request["prompts"], params, use_tqdm=False)
    elapsed_s = time.perf_counter() - started
    return sum(len(sample.token_ids) for output in outputs for sample in output.outputs) / elapsed_s


def main(
    config: Annotated[
        str, typer.Option(help="Run configuration; its tiny_world sizes are replaced.")
    ] = "jobs/configs/quickstart.yaml",
    model: Annotated[str, typer.Option(help="Key in `models`.")] = "strong",
    queries: Annotated[int, typer.Option(help="Prompts; about 50 a second and core with the shipped models.")] = 2_400,
    repeats: Annotated[int, typer.Option(help="Times both are measured; the median ratio is the figure.")] = 3,
    only_bare: Annotated[bool, typer.Option("--bare", hidden=True)] = False,
) -> None:
    """Print generated tokens/s of the sampling job over bare vllm.LLM.generate, same prompts and n, in this run."""
    if only_bare:
        print(bare(json.load(sys.stdin)))
        return
    sizes = [f"queries.tasks.tiny_world.num_{name}={size}" for name, size in (("train", queries), ("validation", 0), ("test", 0))]
    ratios = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as root:
            run_config = load_config(config, sizes, root)
            store = ArtifactStore(root)
            run_prepare_queries(run_config, store)
            every_token, samples_only = job_rate(run_config, store, model)
            bound = bare_rate(run_config, store, model)
        ratios.append(every_token / bound)
        print(
            f"{queries:,} prompts, n = {run_config.sampling.num_samples}: job {every_token:,.0f} tokens/s "
            f"({samples_only:,.0f} without the greedy answers), bare LLM.generate {bound:,.0f} tokens/s, "
            f"ratio {every_token / bound:.3f} ({samples_only / bound:.3f})"
        )
    median = sorted(ratios)[len(ratios) // 2]
    print(json.dumps({"benchmark": "sampling", "ratio_to_bare_engine": round(median, 3), "versions": versions()}))


if __name__ == "__main__":
    typer.run(main)
