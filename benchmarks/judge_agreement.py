"""How far does a judge agree with a grader that compares with the reference?

Measured: a judge's verdicts on sampled answers to a task's queries, with the reference or without it, against the task's own grader
on the same answers: accuracy and Cohen's kappa with bootstrap intervals, the calls that they took, and those of a second run, which
the cache under ROOT should bring to 0. Needs queries/ and samples/<model>/ of a ROOT, and a server with a chat API.

    python benchmarks/judge_agreement.py --config FILE --root ROOT --task gsm8k --base-url http://127.0.0.1:8000/v1 --judge-model ID
    python benchmarks/judge_agreement.py ... --without-reference --limit 200 --api-key-env OPENAI_API_KEY
"""

import asyncio
import json
import time
from typing import Annotated, Any

import typer

from firewall_ray.config.api_key import read_api_key
from firewall_ray.config.judge import JudgeConfig
from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.evaluation.agreement import agreement
from firewall_ray.judge.judge import Judge, Judged, ToJudge
from firewall_ray.stages.prepare_queries import read_queries
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks import get_task, known_tasks


def answers_of(config: RunConfig, store: ArtifactStore, task: str, model: str, limit: int, with_reference: bool) -> list[Any]:
    """(answers to judge, what the task's grader says of each) of the first `limit` queries of the task that have samples."""
    grader = get_task(task, known_tasks(config.queries.custom_tasks()))
    own = config.queries.custom_tasks().get(task)
    options = config.grading.model_dump().get(task) or (own.model_dump(include={"grader", "sandbox"}) if own else {})
    queries = {row["query_id"]: row for row in read_queries(store).read().to_pylist() if row["task"] == task}
    found = []
    for sample in store.samples(model).require().read(["query_id", "texts", "error"]).to_pylist():
        if sample["error"] is None and (query := queries.get(sample["query_id"])) is not None and len(found) < limit:
            reference = json.loads(query["reference"])
            texts = list(dict.fromkeys(sample["texts"]))
            shown = (reference.get("answer", reference)) if with_reference else None
            found.append((ToJudge(query["question"], shown, texts), [grader.grade(text, reference, options) for text in texts]))
    return found


async def ask(judge: Judge, rows: list[ToJudge]) -> tuple[list[dict[str, Judged]], dict[str, int]]:
    try:
        return await judge.judge(rows), judge.counts()
    finally:
        await judge.close()


def main(
    config: Annotated[str, typer.Option(help="The run's YAML, for the task's grader.")],
    base_url: Annotated[str, typer.Option(help="Of the judge's server, up to and including /v1.")],
    judge_model: Annotated[str, typer.Option(help="The id that the server knows it by.")],
    root: Annotated[str | None, typer.Option(help="In place of the config's.")] = None,
    task: str = "gsm8k",
    model: Annotated[str, typer.Option(help="Whose samples are judged.")] = "weak",
    limit: Annotated[int, typer.Option(help="Queries; each has several answers.")] = 100,
    without_reference: bool = False,
    api_key_env: str | None = None,
    max_tokens: int = 256,
    max_calls: int = 10_000,
) -> None:
    run = load_config(config)
    store = ArtifactStore(root or run.root)
    settings = {"base_url": base_url, "model": judge_model, "api_key_env": api_key_env, "max_tokens": max_tokens}
    judge_config = JudgeConfig.model_validate({**settings, "max_calls": max_calls})
    secret = read_api_key(api_key_env, "--api-key-env")
    rows = answers_of(run, store, task, model, limit, with_reference=not without_reference)
    runs = []
    for _ in range(2):
        began = time.perf_counter()
        judge = Judge("--base-url, --judge-model", judge_config, store.judge_cache(), secret, lambda line: print(line))
        judged, counts = asyncio.run(ask(judge, [row for row, _ in rows]))
        runs.append({**counts, "seconds": round(time.perf_counter() - began, 2)})
    pairs = [
        (of_row[text].verdict == "right", right)
        for of_row, (row, rights) in zip(judged, rows, strict=True)
        for text, right in zip(row.answers, rights, strict=True)
        if of_row[text].error is None
    ]
    found = agreement([one for one, _ in pairs], [one for _, one in pairs])
    num_answers = sum(len(rights) for _, rights in rows)
    told = {"task": task, "judge": judge_model, "with_reference": not without_reference, "num_queries": len(rows)}
    share_right = {"judge": sum(one for one, _ in pairs), "grader": sum(one for _, one in pairs)}
    measured = {**found, "num_not_judged": num_answers - len(pairs), "num_right": share_right}
    print(json.dumps({**told, **measured, "first_run": runs[0], "second_run": runs[1], "versions": versions()}))


if __name__ == "__main__":
    typer.run(main)
