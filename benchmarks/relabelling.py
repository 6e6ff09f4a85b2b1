"""Traffic that the router was not trained for: a quickstart without its questions about countries, which then come as live ones.

Makes such a ROOT from a finished `make quickstart`: the labels of all other questions, and a decision log of those left out. They
are questions of the config's task, so they are graded by it, and its test split stays held out. Then:

    python benchmarks/relabelling.py --root runs/relabelling
    python jobs/train_router.py --config jobs/configs/quickstart.yaml --root runs/relabelling --set 'router.designs=[soft_block]'
    python jobs/relabel.py --config jobs/configs/quickstart.yaml --root runs/relabelling --name warm --limit 400
"""

import json
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import typer

from firewall_ray.schemas import DECISIONS
from firewall_ray.stages.prepare_queries import read_queries
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import prompt_id

LEFT_OUT = ("fact", "postal_code")  # skills of tiny_world
COLUMNS = pa.schema([DECISIONS.field(name) for name in ("query_id", "text")])  # what the draw reads of the log


def main(
    root: Annotated[str, typer.Option("--root", help="Of the run to make.")],
    run: Annotated[str, typer.Option("--run", help="ROOT of a finished quickstart.")] = "runs/quickstart",
) -> None:
    """Write labels/ and decisions/ under --root."""
    source, store = ArtifactStore(run), ArtifactStore(root)
    queries = {row["query_id"]: row for row in read_queries(source).read().to_pylist()}
    skill = {query_id: json.loads(row["reference"])["skill"] for query_id, row in queries.items()}
    table = source.labels().require().read()
    is_live = pa.array([skill[query_id] in LEFT_OUT for query_id in table["query_id"].to_pylist()])
    live = [queries[query_id] for query_id in table.filter(is_live)["query_id"].to_pylist()]
    labels = store.labels()
    labels.begin({})
    with labels.writer() as writer:
        writer.write_table(table.filter(pc.invert(is_live)))
    labels.finish({}, {})
    rows = [{"query_id": prompt_id(query["prompt"]), "text": query["question"]} for query in live]
    store.decisions().append(pa.Table.from_pylist(rows, schema=COLUMNS), "live.parquet")
    print(f"{len(table) - len(live):,} labels and {len(live):,} live questions in {root}")


if __name__ == "__main__":
    typer.run(main)
