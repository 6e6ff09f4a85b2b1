"""samples/ and grades/ of the pair -> the same, where answers were cut off: sampled again with more room, and graded.

Runs in the driver, between grading and labels. A query is taken where a sample, or the greedy answer, was cut off by the limit of
tokens and is not right so far: what is right already needs no more. All n of its samples are made again. To replace those alone
that were cut off would prefer short answers: a long one would be drawn again until a short one came.
"""

import logging
import sys
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from firewall_ray.config.run import RunConfig
from firewall_ray.stages.grade import run_grading
from firewall_ray.stages.prepare_queries import read_queries
from firewall_ray.stages.sample import SamplingJob, run_jobs
from firewall_ray.stages.stage import Stage, StageResult
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import LocalRows
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.query_ids import in_buckets

SAMPLE_COLUMNS = ["query_id", "finish_reasons", "greedy_finish_reason", "num_generated_tokens"]

logger = logging.getLogger("firewall_ray")


def run_extension(config: RunConfig, store: ArtifactStore, *, limit: int | None = None, force: bool = False) -> list[StageResult]:
    """Sample and grade again what `sampling.extend_truncated` tokens may bring to an end. Two results a model that has such rows.

    Nothing where the config does not ask for it. force: also of rows that had that much room already. Raises what sampling and
    grading raise.
    """
    bound = config.sampling.extend_truncated
    if bound is None:
        return []
    pair = list(dict.fromkeys((config.pair.weak, config.pair.strong)))
    queries = read_queries(store, limit)
    jobs = []
    for key in pair:
        cut = _cut_off(store.samples(key), store.grades(key), sys.maxsize if force else bound)
        rows = LocalRows(_rows_of(queries, cut), queries.schema)
        logger.info("extend_truncated: %s of %s queries of %s were cut off", f"{len(rows):,}", f"{len(queries):,}", key)
        if len(rows):
            jobs.append(SamplingJob(config, store, key, rows, more_tokens=bound))
    if not jobs:
        return []
    before = [_pass_rate(store.grades(job.key), job.queries) for job in jobs]
    sampled = run_jobs("extend_truncated", jobs)
    # Of a killed run's rows some are extended and not graded yet, so grading follows whatever was to be sampled.
    graded = run_grading(config, store, models=[job.key for job in jobs])
    for job, result, rate in zip(jobs, sampled, before, strict=True):
        result |= {"pass_rate_before": rate, "pass_rate_after": _pass_rate(store.grades(job.key), job.queries)}
    return sampled + graded


def _pass_rate(grades: Dataset, queries: LocalRows) -> float | None:
    """Over all samples of these queries, in [0, 1]; None where none has a verdict."""
    ids = pa.chunked_array(queries.column("query_id"), pa.string()).combine_chunks()
    num_right = num_samples = 0
    for batch in grades.iter_batches(["query_id", "correct"]):
        correct = batch.filter(pc.is_in(batch["query_id"], ids))["correct"].flatten()
        num_right, num_samples = num_right + (pc.sum(correct).as_py() or 0), num_samples + len(correct)
    return round(num_right / num_samples, 4) if num_samples else None


def _cut_off(samples: Dataset, grades: Dataset, bound: int) -> pa.Array:
    """The ids, sorted, of queries with a verdict that is `truncated` and a limit so far below `bound`. In memory."""
    samples.require(SAMPLE_COLUMNS)
    grades.require(["query_id", "verdicts", "greedy_verdict"])
    found = []
    for cut, judged in in_buckets(samples.num_rows() + grades.num_rows(), _cut_below(samples, bound), _truncated(grades)):
        found += cut.filter(pc.is_in(cut, judged.combine_chunks())).chunks
    ids = pa.chunked_array(found, pa.string()).combine_chunks()
    return ids.take(pc.sort_indices(ids))


def _truncated(grades: Dataset) -> Iterator[pa.Array]:
    for batch in grades.iter_batches(["query_id", "verdicts", "greedy_verdict"]):
        of_greedy = pc.fill_null(pc.equal(batch["greedy_verdict"], "truncated"), False)
        yield batch["query_id"].filter(pc.or_(_holds(batch["verdicts"], "truncated"), of_greedy))


def _cut_below(samples: Dataset, bound: int) -> Iterator[pa.Array]:
    """Rows that end in their limit, where that is below `bound`: nothing in them is as long as `bound`.

    Some servers do not count the tokens of a sample; their rows are told by the settings of the run that made them last.
    """
    is_extended = (samples.settings() or {}).get("extended", 0) >= bound
    for batch in samples.iter_batches(SAMPLE_COLUMNS):
        of_greedy = pc.fill_null(pc.equal(batch["greedy_finish_reason"], "length"), False)
        counts = batch["num_generated_tokens"]
        had_room = _any_of(counts, pc.fill_null(pc.greater_equal(pc.list_flatten(counts), bound), is_extended))
        is_cut = pc.or_(_holds(batch["finish_reasons"], "length"), of_greedy)
        yield batch["query_id"].filter(pc.and_(is_cut, pc.invert(had_room)))


def _holds(lists: pa.Array, value: str) -> pa.Array:
    return _any_of(lists, pc.fill_null(pc.equal(pc.list_flatten(lists), value), False))


def _any_of(lists: pa.Array, holds: pa.Array) -> pa.Array:
    """holds: bool, one for each value of the lists. Returns bool, (num_rows,): whether it holds for any value of a list."""
    rows = pc.list_parent_indices(lists).filter(holds)
    return pc.is_in(pa.array(range(len(lists)), rows.type), rows)


def _rows_of(queries: LocalRows, ids: pa.Array) -> Iterator[pa.RecordBatch]:
    for batch in queries.batches():
        yield batch.filter(pc.is_in(batch["query_id"], ids))


STAGE = Stage(
    "extend_truncated", run_extension, reads=("queries", "samples", "grades"), writes=("samples", "grades"), needs_ray=True
)
