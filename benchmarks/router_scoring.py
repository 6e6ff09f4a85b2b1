"""Scoring in length-sorted batches against one query at a time: the same router, threads and prompts, in one run.

The bound is our own predictor with batch_size 1, which is what a caller gets who loops over queries. Both read the same
prompts, tokenising included, after a warm-up; the rounds alternate, so that what else the machine does hits both alike.

    python benchmarks/router_scoring.py --router runs/quickstart/routers/soft_block
"""

import json
import time
from typing import Annotated

import numpy as np
import typer

from firewall_ray.router.predict import RouterPredictor
from firewall_ray.schemas import PROMPT_TEMPLATE
from firewall_ray.store.dataset import versions
from firewall_ray.tasks.tiny_world import draw_unique


def rate(predictor: RouterPredictor, prompts: list[str], one_by_one: bool) -> float:
    """Prompts a second."""
    started = time.perf_counter()
    if one_by_one:
        for prompt in prompts:
            predictor.predict([prompt])
    else:
        predictor.predict(prompts)
    return len(prompts) / (time.perf_counter() - started)


def main(
    router: Annotated[str, typer.Option(help="Folder of a trained router, its router.json included.")],
    num_prompts: Annotated[int, typer.Option(min=10, help="Drawn from tiny_world.")] = 1_000,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    threads: Annotated[int, typer.Option(min=1, help="Of torch, for both.")] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seed: Annotated[int, typer.Option()] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Print prompts/s of both, the ratio (median over rounds; at least 3 is asked for) and how far their scores differ."""
    prompts = [PROMPT_TEMPLATE.format(question=item.question) for item in draw_unique(seed, num_prompts)]
    predictor = RouterPredictor(router, batch_size=batch_size, device=device, num_threads=threads)
    difference = np.abs(predictor.predict(prompts) - np.concatenate([predictor.predict([prompt]) for prompt in prompts])).max()
    results = []
    for i in range(rounds):
        single, batched = rate(predictor, prompts, one_by_one=True), rate(predictor, prompts, one_by_one=False)
        results.append((single, batched))
        print(f"round {i + 1}: one at a time {single:,.0f}/s, batched {batched:,.0f}/s, ratio {batched / single:.2f}")
    singles, batches = (np.array(column) for column in zip(*results, strict=True))
    summary = {
        "one_at_a_time_per_s": float(np.median(singles)),
        "batched_per_s": float(np.median(batches)),
        "ratio": float(np.median(batches / singles)),
        "largest_score_difference": float(difference),
        "num_prompts": num_prompts,
        "batch_size": batch_size,
        "threads": threads,
        "rounds": rounds,
        "seed": seed,
        "device": device,
        "versions": versions(),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    typer.run(main)
