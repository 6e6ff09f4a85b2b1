"""queries/ and the grades of a pair -> labels/: join the three by query_id, and compute every label design.

Runs in the driver, from Parquet to Parquet, with memory flat in the number of queries: see `store/joins.py`. A query that either
model has no verdict on is left out and counted by its reason, in the manifest and the log; so is one that is blocked for
artefacts, where the config says so.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError
from firewall_ray.evaluation.verdicts import count_verdicts, num_artefacts
from firewall_ray.labels import compute_labels, pass_rate
from firewall_ray.schemas import LABEL_DESIGNS, LABELS
from firewall_ray.stages.prepare_queries import check_splits, read_queries
from firewall_ray.stages.stage import Output, Stage, StageResult, make
from firewall_ray.store.joins import Spill, num_buckets, spill_errors, spill_folder
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.query_ids import check_unique
from firewall_ray.store.row_writer import row_writer

QUERY_COLUMNS = ["query_id", "task", "split", "prompt"]
GRADE_COLUMNS = ["query_id", "correct", "greedy_correct", "error"]
MAX_ARTEFACTS = 0.5  # share of the strong model's samples: above it a block says less of the query than of prompt, limit and grader

logger = logging.getLogger("firewall_ray")


def run_labeling(
    config: RunConfig,
    store: ArtifactStore,
    *,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    force: bool = False,
) -> StageResult:
    """Write labels/ for the config's pair. Rows follow the order of queries/ within a bucket, so equal inputs give equal files.

    splits: only of these, for a pair that is evaluated and not trained on; the other queries count as no loss.
    The rows are written to a local file first: whatever is wrong with the grades is found before labels/ is touched.
    Raises ArtifactMissing, and ArtifactError naming the query: for duplicates, a verdict that is null without an error, or
    when its two models were sampled a different number of times; also when no query is left.
    """
    queries, labels = store.queries().require(QUERY_COLUMNS), store.labels()
    leaves_out = config.labels.artefacts == "leave_out"
    # The verdicts of the weak model decide nothing: with no sample of the strong one right, the label is 1 whatever they are.
    strong_columns = [*GRADE_COLUMNS, "verdicts"] if leaves_out else GRADE_COLUMNS
    weak = store.grades(config.pair.weak).require(GRADE_COLUMNS)
    strong = store.grades(config.pair.strong).require(strong_columns)
    settings = {
        "weak": config.pair.weak,
        "strong": config.pair.strong,
        "inputs": [dataset.identity() for dataset in (queries, weak, strong)],
        "limit": limit,
        # Not where they are kept: labels from before there was a choice are the same, and routers that stand on them too.
        **({"artefacts": config.labels.artefacts} if leaves_out else {}),
        **({"splits": list(splits)} if splits is not None else {}),
    }
    output = Output.plan("label", labels, settings, force=force)

    def write() -> dict[str, Any]:
        is_part = limit is not None or splits is not None
        chosen = pa.chunked_array(read_queries(store, limit, splits).column("query_id"), pa.string()) if is_part else None
        # One count for all three: equal ids have to land in buckets of the same number.
        count = num_buckets(max(dataset.num_rows() for dataset in (queries, weak, strong)))
        with spill_folder() as folder:
            spills = {
                "queries": Spill.of(queries, QUERY_COLUMNS, count, folder / "queries"),
                "weak": Spill.of(weak, GRADE_COLUMNS, count, folder / "weak"),
                "strong": Spill.of(strong, strong_columns, count, folder / "strong"),
            }
            left_out: Counter[str] = Counter()
            num_labels = num_without_verdicts = 0
            whole = folder / "labels.parquet"
            with row_writer(lambda: pa.OSFile(str(whole), "wb"), LABELS, spill_errors) as writer:
                for number in range(count):
                    bucket = {name: spill.bucket(number) for name, spill in spills.items()}
                    rows, reasons = label_rows(chosen=chosen, **bucket)
                    num_without_verdicts += _num_without_verdicts(bucket["strong"]) if leaves_out else 0
                    writer.write_table(rows)
                    left_out += reasons
                    num_labels += rows.num_rows
                    logger.info("label: %d of %d buckets, %s labels", number + 1, count, f"{num_labels:,}")
            if not num_labels:
                raise ArtifactError(
                    f"labels: none of the queries in {queries.path} has verdicts of both models in {weak.path} and {strong.path}: "
                    f"{_sentence(left_out)}. Grade the samples of these queries first."
                )
            output.begin()
            labels.add_file(whole)
        if left_out:
            logger.warning("label: left out: %s", _sentence(left_out))
        if num_without_verdicts:
            logger.warning(
                "label: labels.artefacts is leave_out, but %s grades in %s have no verdicts: whatever they are blocked for, they "
                "are kept. Grade again to have them: python jobs/grade.py --config FILE --force",
                *(f"{num_without_verdicts:,}", strong.path),
            )
        return {"labels": num_labels, "left_out": dict(left_out)}

    return make(config, output, write)


def label_rows(
    queries: pa.Table, weak: pa.Table, strong: pa.Table, chosen: pa.ChunkedArray | None = None
) -> tuple[pa.Table, Counter[str]]:
    """Join and label the rows of one bucket (columns: QUERY_COLUMNS, GRADE_COLUMNS).

    Where `strong` has the column `verdicts`, queries that are blocked for artefacts are left out, see `blocked_for_artefacts`.
    Returns rows of `schemas.LABELS` in the order of `queries`, and how many queries (of `unknown`: grades) were left out for
    which reason. `chosen` are the ids that a limit or the splits keep. Raises ArtifactError as `run_labeling` does.
    """
    check_unique(queries["query_id"], "queries")
    check_splits(queries, "queries")
    # bool, (num_queries,) of the bucket.
    keep = np.ones(len(queries), dtype=bool) if chosen is None else _numpy(pc.is_in(queries["query_id"], chosen))
    left_out: Counter[str] = Counter()
    aligned = []
    for role, grades in (("weak", weak), ("strong", strong)):
        check_unique(grades["query_id"], f"grades of the {role} model")
        # int32, (num_queries,): each query's row in `grades`, null where it has none; `take` makes a row of nulls of that.
        row = pc.index_in(queries["query_id"], grades["query_id"])
        grades_here = grades.take(row)
        for reason, lost in (("missing", row.is_null()), ("error", grades_here["error"].is_valid())):
            # Counted once, by the first reason that it is left out for.
            left_out[f"{role}_{reason}"] += int((keep & _numpy(lost)).sum())
            keep &= ~_numpy(lost)
        left_out[f"{role}_unknown"] += len(grades) - pc.count(row).as_py()
        aligned.append(grades_here)
    if "verdicts" in strong.column_names:
        lost = keep & blocked_for_artefacts(queries["split"], *aligned)
        left_out["strong_artefacts"] = int(lost.sum())
        keep &= ~lost
    kept = pa.array(keep)
    # The plus drops reasons that nothing was left out for.
    return _with_labels(queries.filter(kept), *(grades.filter(kept) for grades in aligned)), +left_out


def blocked_for_artefacts(split: pa.ChunkedArray, weak: pa.Table, strong: pa.Table) -> NDArray[np.bool_]:
    """Which queries of train and validation are blocked by samples that say nothing of them: bool, (num_queries,).

    Neither model has a right sample, and of the strong model's more than MAX_ARTEFACTS have no answer or were cut off. Never of
    test: the hard queries would be missing where routers are measured. A row without verdicts is none.
    """
    counts = count_verdicts(strong["verdicts"].combine_chunks())
    is_mostly_artefacts = num_artefacts(counts) > MAX_ARTEFACTS * counts.sum(axis=1)
    is_solved = _has_right(weak["correct"]) | _has_right(strong["correct"])
    return is_mostly_artefacts & ~is_solved & _numpy(pc.not_equal(split, "test"))


def _num_without_verdicts(grades: pa.Table) -> int:
    return pc.sum(pc.and_(grades["verdicts"].is_null(), grades["error"].is_null())).as_py() or 0


def _has_right(correct: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Bool, (num_queries,)."""
    lists = correct.combine_chunks()
    # The lists that each right sample lies in; a null is not right.
    rows = pc.list_parent_indices(lists).filter(pc.list_flatten(lists))
    return np.bincount(rows.to_numpy(), minlength=len(lists)).astype(bool)


def _with_labels(queries: pa.Table, weak: pa.Table, strong: pa.Table) -> pa.Table:
    """Three tables of the same queries in the same order -> rows of `schemas.LABELS`."""
    num_samples = _num_samples(queries["query_id"], weak["correct"], strong["correct"])
    greedy_weak, greedy_strong = (_verdicts(queries["query_id"], grades["greedy_correct"]) for grades in (weak, strong))
    # By column, float32, (num_queries,), in [0, 1].
    rates = {name: np.empty(len(queries), dtype=np.float32) for name in ("pass_rate_weak", "pass_rate_strong", *LABEL_DESIGNS)}
    for n in np.unique(num_samples):  # One value, unless runs with different n were put together.
        rows = num_samples == n
        # bool, (num_rows, n).
        correct_weak, correct_strong = (
            _matrix(queries["query_id"].filter(pa.array(rows)), grades["correct"].filter(pa.array(rows)), n)
            for grades in (weak, strong)
        )
        computed = compute_labels(correct_weak, correct_strong, greedy_weak[rows], greedy_strong[rows])
        computed |= {"pass_rate_weak": pass_rate(correct_weak), "pass_rate_strong": pass_rate(correct_strong)}
        for name, values in computed.items():
            rates[name][rows] = values
    columns = {name: queries[name] for name in QUERY_COLUMNS}
    columns |= {"num_samples": num_samples, "greedy_weak": greedy_weak, "greedy_strong": greedy_strong, **rates}
    return pa.table([columns[name] for name in LABELS.names], schema=LABELS)


def _num_samples(query_ids: pa.ChunkedArray, weak: pa.ChunkedArray, strong: pa.ChunkedArray) -> NDArray[np.int32]:
    """n of every query, int32, (num_queries,). A null list counts as no samples: it is no verdict either."""
    lengths = [_numpy(pc.fill_null(pc.list_value_length(correct), 0)) for correct in (weak, strong)]
    wrong = np.flatnonzero((lengths[0] != lengths[1]) | (lengths[0] == 0))
    if len(wrong):
        row = int(wrong[0])
        raise ArtifactError(
            f"grades: query {query_ids[row].as_py()!r} has {lengths[0][row]} graded samples of the weak model and "
            f"{lengths[1][row]} of the strong one ({len(wrong):,} such queries); both need the same number, at least 1. "
            "Sample both models with the same sampling.num_samples and grade them again."
        )
    return lengths[0]


def _verdicts(query_ids: pa.ChunkedArray, correct: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Bool, the shape of `correct`. Raises ArtifactError for a null: neither right nor wrong, and no error said why."""
    if correct.null_count:
        # `correct` holds one verdict a query, or all n of each in a row: the division finds the query of both.
        row = pc.index(correct.is_null(), True).as_py() * len(query_ids) // len(correct)
        raise ArtifactError(
            f"grades: query {query_ids[row].as_py()!r} has a null verdict and no `error`. Grade it again, or set its error."
        )
    return _numpy(correct)


def _matrix(query_ids: pa.ChunkedArray, correct: pa.ChunkedArray, n: int) -> NDArray[np.bool_]:
    """Lists of n verdicts each -> (num_queries, n)."""
    return _verdicts(query_ids, pc.list_flatten(correct)).reshape(-1, n)


def _numpy(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    # Arrow keeps a truth value in a bit, so booleans are copied; a ChunkedArray always is.
    return column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()


def _sentence(left_out: Mapping[str, int]) -> str:
    """One line for people.

    >>> _sentence({"weak_missing": 2, "strong_unknown": 1})
    '2 queries without a grade of the weak model, 1 grades of the strong model without their query'
    """
    texts = {
        "missing": "queries without a grade of the {} model",
        "error": "queries with an error of the {} model",
        "unknown": "grades of the {} model without their query",
        "artefacts": "queries that nobody solves and on which most samples of the {} model have no answer or were cut off",
    }
    parts = []
    for key, count in left_out.items():
        role, reason = key.split("_")
        parts.append(f"{count:,} {texts[reason].format(role)}")
    return ", ".join(parts)


STAGE = Stage("label", run_labeling, reads=("queries", "grades"), writes=("labels",))
