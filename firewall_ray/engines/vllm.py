"""vLLM on a Ray Data actor: n samples and the greedy answer of every query, continuously batched.

Rows in: `query_id`, `task`, `prompt`, `question`. Rows out: `samples/`. Runs on each sampling actor.

Each query is two requests: one with `n` samples, which share the prefill, and a greedy one whose first token's top-2
probabilities give the margin. Several Ray Data batches are in flight on an actor at once (`num_batches_in_flight`) and all
of them feed one engine, so it never drains between two batches.
"""

import asyncio
import itertools
import logging
import math
import os
import queue
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from dataclasses import fields
from typing import Any

import pyarrow as pa

from firewall_ray.config.models import VllmModelConfig
from firewall_ray.engines.orphans import core_ends_with_actor
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.engines.report import EngineReport
from firewall_ray.engines.rows import Completion, SamplingSpec, error_row, sample_row, to_table
from firewall_ray.engines.vllm_progress import EngineMeter, phases_told

logger = logging.getLogger(__name__)


class VllmSampler:
    """The callable that `Dataset.map_batches` constructs once on every actor. Starting it loads the model."""

    def __init__(self, model: str, config: VllmModelConfig, spec: SamplingSpec, progress: Any = None) -> None:
        self.model = model
        self._report = EngineReport(model, progress)
        self._engine = EngineThread(config, spec, self._report)
        self._params = {task: sampling_params(spec, task) for task in spec.max_tokens}  # (sampled, greedy)

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        queries = batch.to_pylist()
        # The greedy requests of a batch follow its sampled ones: vLLM gathers logprobs for a whole step as soon as one of
        # its sequences asks for them, so those sequences should sit in the same steps.
        inputs = [self._engine.render(query) for query in queries]
        sampled = [self._engine.submit(i, self._params[q["task"]][0]) for i, q in zip(inputs, queries, strict=True)]
        greedy = [self._engine.submit(i, self._params[q["task"]][1]) for i, q in zip(inputs, queries, strict=True)]
        rows = await asyncio.gather(*(self._row(*args) for args in zip(queries, sampled, greedy, strict=True)))
        self._report.flush()
        yield to_table(rows)

    async def _row(self, query: Mapping[str, Any], sampled: "Future[Any]", greedy: "Future[Any]") -> dict[str, Any]:
        row = await self._made(query, sampled, greedy)
        self._report.row(row)
        return row

    async def _made(self, query: Mapping[str, Any], sampled: "Future[Any]", greedy: "Future[Any]") -> dict[str, Any]:
        try:
            # The engine's thread sets these; wrap_future carries the result over to the actor's event loop.
            samples, best = await asyncio.wrap_future(sampled), await asyncio.wrap_future(greedy)
        except Exception as e:  # this query alone is at fault (say, too long a prompt); the others go on
            return error_row(query, self.model, e)
        completions = [_completion(output) for output in samples.outputs]
        margin = top2_margin(best.outputs[0].logprobs)
        return sample_row(query, self.model, completions, _completion(best.outputs[0]), margin, len(samples.prompt_token_ids))


def sampling_params(spec: SamplingSpec, task: str) -> tuple[Any, Any]:
    """vLLM's parameters for the sampled and for the greedy request of a query of this task.

    No per-request seed: it kills vLLM's CPU engine (0.29), so the engine is seeded instead.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    common: dict[str, Any] = {
        "max_tokens": spec.max_tokens[task],
        "stop": list(spec.stop[task]),
        "output_kind": RequestOutputKind.FINAL_ONLY,
    }
    sampled = SamplingParams(n=spec.num_samples, temperature=spec.temperature, top_p=spec.top_p, **common)
    return sampled, SamplingParams(n=1, temperature=0.0, logprobs=2, **common)


def chat_params(prompt: PromptFormat) -> Any:
    """vLLM's, with what its server adds to a request that says nothing of its own."""
    from vllm.renderers import ChatParams

    # The model's turn comes next: without this the template would end after the question.
    kwargs = {"add_generation_prompt": True, **prompt.template_kwargs}
    return ChatParams(chat_template=prompt.template, chat_template_kwargs=kwargs)


def top2_margin(logprobs: list[Mapping[int, Any]] | None) -> float | None:
    """p1 - p2 of the first generated token, in [0, 1] (margin sampling). None when nothing was generated."""
    if not logprobs:
        return None
    # logprobs[0]: the first token's entries by token id, the two likeliest. 0.0 stands for a second one that is not there.
    first, second, *_ = [*sorted((math.exp(entry.logprob) for entry in logprobs[0].values()), reverse=True), 0.0]
    return first - second


def _completion(output: Any) -> Completion:
    return Completion(output.text, len(output.token_ids), output.finish_reason)


class EngineThread:
    """A vLLM engine stepped by a thread of its own; `submit` may be called from any thread.

    The engine is vLLM's synchronous one, the same that `vllm.LLM.generate` drives, but fed while it runs.
    """

    def __init__(self, config: VllmModelConfig, spec: SamplingSpec, report: EngineReport) -> None:
        report.state("loading the model")
        self._engine = start_engine(config, spec.seed, report)
        self._format = spec.prompt
        self._chat_params = chat_params(spec.prompt) if spec.prompt.is_chat else None
        self._meter = EngineMeter(self._engine, spec.num_samples + 1, report)
        report.state("waiting for its first batch")
        from vllm.exceptions import VLLMClientError

        self._refusals = (VLLMClientError, ValueError, TypeError)  # what vLLM raises for a request that it cannot take
        self._inbox: queue.SimpleQueue[tuple[Any, Any, Future[Any]]] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Any]] = {}
        threading.Thread(target=self._run, name="vllm-engine", daemon=True).start()

    def render(self, query: Mapping[str, Any]) -> Any:
        """The query as the engine takes it, tokenized once for both of its requests; the exception when it cannot be."""
        try:
            if self._chat_params is None:
                return self._engine.renderer.render_cmpl([{"prompt": self._format.raw(query)}])[0]
            # By vLLM's own renderer, as the served model's chats are.
            _, prompts = self._engine.renderer.render_chat([self._format.messages(query)], self._chat_params)
            return prompts[0]
        except self._refusals as e:
            return e

    def submit(self, prompt: Any, params: Any) -> "Future[Any]":
        """A future of vLLM's RequestOutput for a rendered prompt; it raises what vLLM raised when it refused."""
        future: Future[Any] = Future()
        if isinstance(prompt, Exception):
            future.set_exception(prompt)
        else:
            self._inbox.put((prompt, params, future))
        return future

    def _run(self) -> None:
        numbers = itertools.count()
        try:
            while True:
                # All that wait join before the next step; with nothing to step, `get` blocks until something comes.
                while not self._inbox.empty() or not self._engine.has_unfinished_requests():
                    if self._inbox.empty():
                        self._meter.tell()  # nothing may follow for a while
                    self._add(str(next(numbers)), *self._inbox.get())
                for output in self._engine.step():
                    if output.finished:
                        self._waiting.pop(output.request_id).set_result(output)
                self._meter.stepped()
        except BaseException:
            # The engine is beyond repair inside this process (device memory, a dead worker). Leaving makes Ray start the
            # actor again, at most `sampling.max_restarts` times, and hand its rows to the new one.
            logger.exception("the vLLM engine died; leaving this actor to Ray to restart")
            os._exit(1)

    def _add(self, request_id: str, prompt: Any, params: Any, future: "Future[Any]") -> None:
        try:
            self._waiting[request_id] = future
            self._engine.add_request(request_id, prompt, params)
            self._meter.added(params.n)
        except self._refusals as e:
            del self._waiting[request_id]
            future.set_exception(e)


def start_engine(config: VllmModelConfig, seed: int, report: EngineReport) -> Any:
    """A `vllm.v1.engine.llm_engine.LLMEngine` for this model, in the environment that its device needs. report: of its phases."""
    on_cpu = config.device == "cpu"
    if on_cpu:
        # vLLM reads whole GiB alone: int("1.5") would end the engine.
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(math.ceil(config.kv_cache_gib))
        # Pinning would put the engines of two actors onto the same cores.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if config.tensor_parallel_size * config.pipeline_parallel_size == 1:
        # The actor is the engine's process already: no second one to feed, to watch and to kill.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    else:
        core_ends_with_actor()
    # Before the import: vLLM configures its logging when it is loaded.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

    from vllm import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = engine_args(config, seed)
    if arguments.keys() - {each.name for each in fields(EngineArgs)}:
        # Such as `tool_call_parser`, which serving the model needs and its engine does not know. What is still unknown vLLM names.
        arguments = {name: value for name, value in arguments.items() if name not in server_arguments()}
    # As `vllm.LLM` has it: vLLM then picks the batch limits of offline use, larger than a server's.
    with phases_told(report):
        return LLMEngine.from_engine_args(EngineArgs(**arguments), usage_context=UsageContext.LLM_CLASS)


def server_arguments() -> set[str]:
    """What vLLM's server takes, and its engine does not."""
    from vllm import EngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs

    return {each.name for each in fields(FrontendArgs)} - {each.name for each in fields(EngineArgs)}


def engine_args(config: VllmModelConfig, seed: int) -> dict[str, Any]:
    """What the config says, in vLLM's words. `engine_kwargs` is last and wins."""
    num_gpus = config.tensor_parallel_size * config.pipeline_parallel_size
    args: dict[str, Any] = {
        "model": config.path,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": config.tensor_parallel_size,
        "pipeline_parallel_size": config.pipeline_parallel_size,
        "seed": seed,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if config.device == "gpu":
        args["gpu_memory_utilization"] = config.gpu_memory_utilization
    else:
        # The n samples of a query share its prefill in whole blocks alone, and vLLM's default on CPUs, 128 tokens, is longer than
        # most questions: each sample would compute its own. 32 is the least that vLLM's attention takes there.
        args["block_size"] = 32
    if num_gpus > 1:
        args["distributed_executor_backend"] = "ray"  # its workers land in the actor's placement group
    return {**args, **config.engine_kwargs}
