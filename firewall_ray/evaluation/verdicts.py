"""What became of the samples: right, wrong, without an answer, or cut off; and what the queries are blocked for.

Rows in: `schemas.GRADES` of the pair, and the labelled test queries. Runs in the driver, streamed: in memory are four counts of
each test query and a batch. The label that blocks a query from the strong model says that nobody can solve it. It may as well stand
for answers that were cut off or that no grader could read (arXiv 2605.07395), so the report says how many of them are.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from firewall_ray.errors import ArtifactError
from firewall_ray.evaluation.inputs import REPEATED, WANTED, LabelledQueries
from firewall_ray.schemas import VERDICTS
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import READ_ROWS, Spill, num_buckets, spill_folder
from firewall_ray.store.query_ids import IDS, check_unique

Counts = NDArray[np.int64]  # (num_queries, 4): a query's samples with each of VERDICTS; zeros where no verdict is known
COLUMNS = ["query_id", "verdicts"]
COUNTED = pa.schema([*IDS, *(pa.field(verdict, pa.int64(), nullable=False) for verdict in VERDICTS)])
ARTEFACTS = ("no_answer", "truncated")  # say something about the prompt, the limit or the grader, and nothing about the query
MANY = 0.1  # of the samples of the blocked queries: from here on the report warns


def count_verdicts(verdicts: pa.Array, where: str = "grades") -> Counts:
    """Lists of verdicts -> how many of each a list holds. Raises ArtifactError for a verdict that there is not.

    >>> count_verdicts(pa.array([["wrong", "right", "wrong"], None, ["truncated"]]))
    array([[1, 2, 0, 0],
           [0, 0, 0, 0],
           [0, 0, 0, 1]])
    """
    # int64, (num_samples,): the list that each lies in, and the number of its verdict.
    rows, flat = pc.list_parent_indices(verdicts), pc.list_flatten(verdicts)
    numbers = pc.index_in(flat, pa.array(VERDICTS))
    if numbers.null_count:
        wrong = flat[pc.index(numbers.is_null(), True).as_py()].as_py()
        raise ArtifactError(f"{where}: a verdict is {wrong!r}; there are {', '.join(VERDICTS)}. Grade again: python jobs/grade.py")
    cells = np.bincount(rows.to_numpy() * len(VERDICTS) + numbers.to_numpy(), minlength=len(verdicts) * len(VERDICTS))
    return cells.reshape(-1, len(VERDICTS))


def num_artefacts(counts: Counts) -> NDArray[np.int64]:
    """Samples without an answer or cut off, (num_queries,)."""
    return counts[:, [VERDICTS.index(verdict) for verdict in ARTEFACTS]].sum(axis=1)


def read_verdicts(grades: Dataset, query_ids: list[str]) -> Counts:
    """The counts of these queries, in their order. Raises ArtifactMissing, and ArtifactError where an id comes twice."""
    where = f"grades: {grades.require(COLUMNS).path}"
    found = np.zeros((len(query_ids), len(VERDICTS)), dtype=np.int64)
    places = pa.table([pa.array(query_ids, pa.string()), np.arange(len(query_ids))], schema=WANTED)

    def counted() -> Iterator[pa.RecordBatch]:
        # Counts go to the disk, not texts: a hundredth of the bytes.
        for batch in grades.iter_batches(COLUMNS, READ_ROWS):
            yield pa.record_batch([batch["query_id"], *count_verdicts(batch["verdicts"], where).T], COUNTED)

    count = num_buckets(max(grades.num_rows(), len(query_ids)))
    with spill_folder() as folder:
        there = Spill(counted(), COUNTED, count, folder / "grades")
        asked = Spill(places.to_batches(max_chunksize=READ_ROWS), WANTED, count, folder / "wanted")
        for number in range(count):
            graded, here = there.bucket(number), asked.bucket(number)
            check_unique(graded["query_id"], where, REPEATED)
            row = pc.index_in(here["query_id"], value_set=graded["query_id"].combine_chunks())
            known = here["place"].filter(row.is_valid()).to_numpy()
            counts = graded.take(row.drop_null())
            found[known] = np.column_stack([counts[verdict].to_numpy() for verdict in VERDICTS])
    return found


def shares(counts: Counts) -> dict[str, float]:
    """Of all samples of these queries, by verdict; NaN where there are none.

    >>> shares(np.array([[1, 2, 0, 0], [0, 0, 0, 1]]))
    {'right': 0.25, 'wrong': 0.5, 'no_answer': 0.0, 'truncated': 0.25}
    """
    total = counts.sum()
    return {verdict: float(of / total) if total else float("nan") for verdict, of in zip(VERDICTS, counts.sum(axis=0), strict=True)}


def verdict_sections(queries: LabelledQueries, counts: Mapping[str, Counts]) -> dict[str, Any]:
    """The sections `verdicts` and `blocked` of report.json, for every task and "all". counts: by model, the weak one first.

    Blocked is a query that neither model solves in any sample: hard_block, soft_block and win_rate are 1 there.
    """
    blocked = (queries.pass_rate_weak == 0) & (queries.pass_rate_strong == 0)
    rows = {"all": np.ones(len(queries), dtype=bool)} | {task: queries.tasks == task for task in queries.task_names()}

    def of_blocked(of_task: NDArray[np.bool_]) -> dict[str, Any]:
        models = {model: shares(of_model[of_task & blocked]) for model, of_model in counts.items()}
        pooled = shares(np.concatenate([of_model[of_task & blocked] for of_model in counts.values()]))
        failures = [verdict for verdict in VERDICTS if verdict != "right"]
        return {
            "num_queries": int((of_task & blocked).sum()),
            "share_of_queries": float(blocked[of_task].mean()),
            **{verdict: pooled[verdict] for verdict in failures},
            "models": {model: {verdict: found[verdict] for verdict in failures} for model, found in models.items()},
        }

    return {
        "verdicts": {
            model: {task: shares(of_model[of_task]) for task, of_task in rows.items()} for model, of_model in counts.items()
        },
        "blocked": {task: of_blocked(of_task) for task, of_task in rows.items()},
    }


def warning(sections: Mapping[str, Any]) -> str | None:
    """In words, where artefacts are many among the samples of the blocked queries; None where they are not."""
    blocked = sections["blocked"]
    tasks = [task for task in blocked if task != "all"]

    def artefacts(task: str) -> float:
        return sum(blocked[task][verdict] for verdict in ARTEFACTS)

    # NaN, of a task without such queries, is not above.
    many = [task for task in tasks if artefacts(task) > MANY]
    if not many:
        return None
    found = "; ".join(
        f"{task} ({blocked[task]['num_queries']:,} queries): {blocked[task]['truncated']:.0%} were cut off by the limit of tokens, "
        f"{blocked[task]['no_answer']:.0%} hold no answer that the grader can read"
        for task in many
    )
    return (
        "Some queries may be blocked by mistake: where neither model solves a query, many samples are no wrong answers. Of such "
        f"samples, by task: {found}. Look at some of them: a larger sampling.max_tokens or another prompt may bring answers, and "
        "labels.artefacts: leave_out keeps such queries out of training."
    )
