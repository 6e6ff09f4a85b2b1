"""Does the running application keep what the report promised? The test split through HTTP, its answers graded.

Every test query is asked once at each strong fraction, sampled as the pipeline sampled (its temperature, the task's stop words
and limit), and graded by the task. Beside the pass rate, with its bootstrap interval over queries, stands the report's.

    make serve                                                      # or with --set serving.budget_control.window=1000
    python benchmarks/served_quality.py --config jobs/configs/quickstart.yaml
"""

import asyncio
import json
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.engines.prompt_choice import prompt_format
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.stages.prepare_queries import read_queries
from firewall_ray.stages.sample import sampling_spec
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks import get_task, known_tasks

NUM_BOOTSTRAP = 1_000
FRACTIONS = (0.2, 0.5, 0.8)


async def ask(
    url: str, config: RunConfig, rows: list[dict[str, Any]], model: str, concurrency: int, prompt: PromptFormat
) -> tuple[list[bool], list[bool]]:
    """(went strong, is correct) of each row, which is asked as it was sampled."""
    tasks = known_tasks(config.queries.custom_tasks())
    spec = sampling_spec(config, {row["task"] for row in rows}, prompt)
    grading = config.grading.model_dump()
    slots = asyncio.Semaphore(concurrency)

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def one(row: dict[str, Any]) -> tuple[bool, bool]:
            task = get_task(row["task"], tasks)
            body: dict[str, Any] = {
                "model": model,
                "temperature": spec.temperature,
                "top_p": spec.top_p,
                "max_tokens": spec.max_tokens[row["task"]],
            }
            if prompt.is_chat:
                body["messages"] = prompt.messages(row)
            else:
                body["prompt"] = prompt.raw(row)
            if stop := list(spec.stop[row["task"]]):
                body["stop"] = stop
            async with slots:
                path = "/v1/chat/completions" if prompt.is_chat else "/v1/completions"
                response = (await client.post(path, json=body)).raise_for_status()
            choice = response.json()["choices"][0]
            text = choice["message"]["content"] if prompt.is_chat else choice["text"]
            correct = task.grade(text, json.loads(row["reference"]), grading.get(row["task"]) or {})
            return response.headers["x-firewall-route"] == "strong", correct

        answers = await asyncio.gather(*(one(row) for row in rows))
    strong, correct = zip(*answers, strict=True)
    return list(strong), list(correct)


def interval(correct: list[bool], seed: int) -> tuple[float, float]:
    """95%, by bootstrap over queries."""
    drawn = np.random.default_rng(seed).integers(len(correct), size=(NUM_BOOTSTRAP, len(correct)))
    low, high = np.percentile(np.array(correct)[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def main(
    config: Annotated[str, typer.Option(help="The run's YAML file.")],
    root: Annotated[str | None, typer.Option(help="Above the config's own.")] = None,
    url: Annotated[str, typer.Option(help="Of the running application.")] = "http://127.0.0.1:8000",
    concurrency: Annotated[int, typer.Option(min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Of the order in which queries are asked, and of the bootstrap.")] = 0,
) -> None:
    """Print realised fraction and pass rate at 20, 50 and 80% strong calls, and the report's."""
    loaded = load_config(config, root=root)
    store = ArtifactStore(loaded.root)
    rows = [row for row in read_queries(store).read().to_pylist() if row["split"] == "test"]
    router = loaded.served_router
    with store.report().filesystem.open_input_stream(f"{store.report().path}/report.json") as stream:
        promised = json.loads(stream.read())["routers"][router]["all"]
    # Of the weak model: a pair of a chat and a base model cannot be asked both ways by one client.
    recorded = store.samples(loaded.pair.weak).manifest()["settings"]["model"].get("prompt")
    prompt = prompt_format(loaded.pair.weak, loaded.models[loaded.pair.weak], recorded)
    table = Table("target", "realised", "pass rate", "report", title=f"{router}, {len(rows):,} test queries")
    results = []
    for fraction in FRACTIONS:
        order = np.random.default_rng(seed).permutation(len(rows))
        asked = ask(url, loaded, [rows[i] for i in order], f"firewall-{fraction}", concurrency, prompt)
        strong, correct = asyncio.run(asked)
        low, high = interval(correct, seed)
        report = promised[f"pass_rate_{round(100 * fraction)}"]
        table.add_row(
            f"{fraction}",
            f"{np.mean(strong):.3f}",
            f"{np.mean(correct):.3f} [{low:.3f}, {high:.3f}]",
            f"{report['value']:.3f} [{report['low']:.3f}, {report['high']:.3f}]",
        )
        served = {"value": float(np.mean(correct)), "low": low, "high": high}
        results.append({"target": fraction, "realised": float(np.mean(strong)), "pass_rate": served, "report": report})
    Console().print(table)
    print(json.dumps({"benchmark": "served_quality", "results": results, "versions": versions()}))


if __name__ == "__main__":
    typer.run(main)
