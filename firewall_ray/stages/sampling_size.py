"""How long sampling will take, said before it starts: what there is to generate, and by the rows that are there how many tokens and
how fast. Runs in the driver. While it runs, `cluster/meter.py` goes on from what is measured.
"""

from collections import Counter
from collections.abc import Mapping
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from firewall_ray.cluster.meter import about, count_words
from firewall_ray.engines.rows import SamplingSpec
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import LocalRows
from firewall_ray.store.parts import parts_of


def size_words(num_missing: int, queries: LocalRows, samples: Dataset, spec: SamplingSpec, tokens_per_s: float | None) -> str:
    """For example: 5,940 generations, about 0.8 M tokens by the 20 queries that are done, about 52 minutes at 260 tokens/s.

    Without a row of a task, its share is what its limit allows at most. tokens_per_s: of the last run, None where there was none.
    """
    tasks = _count(pa.chunked_array(queries.column("task"), pa.string()))
    known, num_known = _tokens_of_a_query(samples, spec.num_samples)
    limits = {task: float((spec.num_samples + 1) * spec.max_tokens[task]) for task in tasks}
    # Of all queries, then of those that are missing, as if these were spread over the tasks evenly.
    share = num_missing / max(1, len(queries))
    num_tokens = share * sum(number * known.get(task, limits[task]) for task, number in tasks.items())
    words = f"{num_missing * (spec.num_samples + 1):,} generations"
    if tasks.keys() - known.keys():
        return f"{words}, at most {count_words(num_tokens)} tokens"
    words += f", about {count_words(num_tokens)} tokens by the {num_known:,} queries that are done"
    return f"{words}, {about(num_tokens / tokens_per_s)} at {tokens_per_s:,.0f} tokens/s" if tokens_per_s else words


def rate_of_run(num_tokens: int, num_rows: int, num_made: int, num_samples: int, elapsed_s: float) -> float:
    """Tokens a second of the run that made the last `num_made` of all rows, as if these were as long as the others.

    num_tokens: of the samples of all rows; a row's greedy answer counts like one of its n samples.

    >>> rate_of_run(num_tokens=8_000, num_rows=100, num_made=10, num_samples=8, elapsed_s=30)
    30.0
    """
    tokens_of_row = num_tokens / num_rows * (num_samples + 1) / num_samples
    return round(tokens_of_row * num_made / elapsed_s, 1)


def _tokens_of_a_query(samples: Dataset, num_samples: int) -> tuple[Mapping[str, float], int]:
    """By task, the mean tokens of all generations of a query, the greedy one counted like a sample; and of how many queries."""
    tokens: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    # What a killed run has done lies in the parts.
    datasets = [samples, parts_of(samples)] if samples.state() != "missing" else []
    for batch in chain.from_iterable(each.iter_batches(["task", "num_generated_tokens"]) for each in datasets):
        # A row with an error, or of a server that does not count, says nothing.
        counted = batch.filter(pc.is_valid(batch["num_generated_tokens"]))
        rows.update(_count(counted["task"]))
        flat = pa.table(
            {"row": pc.list_parent_indices(counted["num_generated_tokens"]), "n": counted["num_generated_tokens"].flatten()}
        )
        sums = pa.table({"task": counted["task"].take(flat["row"]), "n": flat["n"]}).group_by("task").aggregate([("n", "sum")])
        tokens.update({row["task"]: row["n_sum"] or 0 for row in sums.to_pylist()})
    return {task: tokens[task] / rows[task] * (num_samples + 1) / num_samples for task in rows if tokens[task]}, rows.total()


def _count(tasks: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(tasks).to_pylist()}
