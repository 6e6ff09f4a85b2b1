"""Sampling real models: tokens/s of the whole job over a bare script that loads the model and calls `vllm.LLM.generate`.

For long answers: the steady state that `sampling.py` measures needs thousands of queries, which real models take hours for. So
both sides count everything: loading, filling up, and the last answers, which the engine works on alone. Same prompts, same
requests (n samples and a greedy answer with logprobs a query), same threads, one after the other in this run.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Annotated, Any

import typer
from sampling import bare_environment

from firewall_ray.cluster.connect import connected
from firewall_ray.config.models import VllmModelConfig
from firewall_ray.config.run import load_config
from firewall_ray.engines.checkpoint import Checkpoint
from firewall_ray.engines.prompt_choice import prompt_format
from firewall_ray.engines.rows import SamplingSpec
from firewall_ray.engines.vllm import engine_args, sampling_params
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.stages.sample import run_sampling, sampling_spec
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore


def bare(request: dict[str, Any]) -> int:
    """The tokens that the bare engine generated."""
    from vllm import LLM

    llm = LLM(**request["engine"])
    spec = SamplingSpec(**{**request["spec"], "prompt": None})
    pairs = [({"prompt_token_ids": ids}, sampling_params(spec, task)) for task, ids in request["prompts"]]
    prompts = [prompt for prompt, _ in pairs for _ in range(2)]
    outputs = llm.generate(prompts, [each for _, params in pairs for each in params], use_tqdm=False)
    return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)


def main(
    config: Annotated[str, typer.Option(help="Run configuration.")] = "jobs/configs/real_small.yaml",
    model: Annotated[str, typer.Option(help="Key in `models`.")] = "strong",
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE above the configuration's.")] = None,
    root: Annotated[str | None, typer.Option(help="A new folder, where the job's samples stay. Else they are thrown away.")] = None,
    only_bare: Annotated[bool, typer.Option("--bare", hidden=True)] = False,
) -> None:
    """Print tokens/s of the whole sampling job and of a bare script with the same requests, and their ratio."""
    if only_bare:
        print(bare(json.load(sys.stdin)))
        return
    with tempfile.TemporaryDirectory() as thrown_away:
        run_config = load_config(config, set_ or [], root or thrown_away)
        store = ArtifactStore(run_config.root)
        run_prepare_queries(run_config, store)
        spec = run_config.models[model]
        assert isinstance(spec, VllmModelConfig)
        tokenizer, prompt = Checkpoint.of(spec).tokenizer(), prompt_format(model, spec)
        with connected(run_config.ray):
            started = time.perf_counter()
            run_sampling(run_config, store, models=[model])
            job_s = time.perf_counter() - started
        samples = store.samples(model).read(["num_generated_tokens", "greedy_text"]).to_pylist()
        greedy_tokens = sum(len(tokenizer(row["greedy_text"])["input_ids"]) + 1 for row in samples)  # and EOS
        job_tokens = greedy_tokens + sum(sum(row["num_generated_tokens"]) for row in samples)
        queries = store.queries().read(["task", "prompt", "question"]).to_pylist()
        as_sampled = sampling_spec(run_config, {query["task"] for query in queries}, prompt)
        request = {
            "engine": engine_args(spec, run_config.sampling.seed),
            "spec": {name: value for name, value in vars(as_sampled).items() if name != "prompt"},
            "prompts": [(query["task"], prompt.token_ids(tokenizer, query)) for query in queries],
        }
    environment = {**os.environ, **bare_environment(spec)}
    started = time.perf_counter()
    script = [sys.executable, __file__, "--bare"]
    done = subprocess.run(script, input=json.dumps(request), env=environment, stdout=subprocess.PIPE, text=True, check=True)
    bare_s = time.perf_counter() - started
    bare_tokens = int(done.stdout.splitlines()[-1])
    rates = job_tokens / job_s, bare_tokens / bare_s
    print(f"{model}, {len(queries)} queries: job {job_tokens:,} tokens in {job_s:,.0f} s, {rates[0]:,.0f} tokens/s; "
          f"bare {bare_tokens:,} in {bare_s:,.0f} s, {rates[1]:,.0f} tokens/s; ratio {rates[0] / rates[1]:.3f}")  # fmt: skip
    print(json.dumps({"benchmark": "real_sampling", "ratio_to_bare_script": round(rates[0] / rates[1], 3), "versions": versions()}))


if __name__ == "__main__":
    typer.run(main)
