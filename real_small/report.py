"""The real pair's tables from its kept grades, without sampling: make real-report.

The folder beside this file holds which questions were asked and what became of the answers; the questions themselves come from
their data sets, found by their ids, which are hashes of their texts. Then labels, routers, scores and report are made as by the
pipeline.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from firewall_ray.baselines.run import run_baselines
from firewall_ray.cli import ConfigOption, RootOption, SetOption, job, run
from firewall_ray.cluster.display import console
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import TaskError
from firewall_ray.evaluation.table import load_report, print_table
from firewall_ray.schemas import GRADES, QUERIES
from firewall_ray.stages import load_stage
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks import get_task

KEPT = Path(__file__).parent
ASKED = KEPT / "asked.parquet"  # query_id, task, split
MODELS = ("weak", "strong")
STAGES = ("label", "train_router", "score", "report")


def graded(key: str) -> Path:
    """The kept grades of a model: the columns of grades/."""
    return KEPT / "grades" / f"{key}.parquet"


def main(
    config: ConfigOption = "jobs/configs/real_small.yaml",
    root: RootOption = "runs/real_report",
    set_: SetOption = None,
    baselines: Annotated[bool, typer.Option(help="Nearest neighbours too, on the weak model's hidden states.")] = True,
) -> None:
    """Labels, routers and report of the real pair, from the grades that this repository keeps: minutes instead of hours."""
    with job("real_report", config, root, set_, needs_ray=True) as context:
        write_kept(context.config, context.store)
        for verb in STAGES:
            if verb == "report" and baselines:
                for result in run_baselines(context.config, context.store):
                    context.report(result)
            for result in load_stage(verb).results(context.config, context.store):
                context.report(result)
        print_table(load_report(context.store.report()), console)


def write_kept(config: RunConfig, store: ArtifactStore) -> None:
    """queries/ and grades/ under ROOT, unless they are there. Raises TaskError naming the task whose source lacks questions."""
    if store.queries().state() != "finished":
        rows = list(asked_queries(config))
        store.queries().begin({"kept": ASKED.name})
        with store.queries().writer() as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=QUERIES))
        store.queries().finish(config.model_dump(mode="json"), {"queries": len(rows)})
    for key in MODELS:
        if (grades := store.grades(key)).state() != "finished":
            grades.begin({"kept": key})
            grades.append(pq.read_table(graded(key)).cast(GRADES), "part-0.parquet")
            grades.finish(config.model_dump(mode="json"), {"rows": grades.num_rows()})


def asked_queries(config: RunConfig) -> Iterator[dict[str, str]]:
    """The questions that were asked, in the splits that they were asked in, whatever split their source has them in."""
    kept = pq.read_table(ASKED).to_pylist()
    splits = {row["query_id"]: row["split"] for row in kept}
    missing = Counter(row["task"] for row in kept)
    assert config.queries.tasks is not None
    for name, options in config.queries.tasks.options().items():
        # All that the source has: another shuffle or size there must not lose a question.
        everything = {**options, "num_train": None, "num_validation": 0, "num_test": None}
        for query in get_task(name).load(everything):
            if query.query_id in splits:
                missing[name] -= 1
                yield {**query._asdict(), "split": splits[query.query_id]}
        if missing[name]:
            raise TaskError(
                f"queries.tasks.{name}.source: {options['source']} lacks {missing[name]:,} of the questions that were asked. "
                "Give the data set that docs/real_models.md names."
            )


if __name__ == "__main__":
    run(main)
