"""labels/ -> scores/control_length/ and scores/control_task/: every labelled query scored by its prompt's length, or its task.

Both are fitted on soft_block in the train split. The report makes them itself: they cost two passes over labels/, in which a row of
the train split takes some 20 bytes. Runs in the driver.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeRegressor

from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError
from firewall_ray.evaluation.controls import CONTROLS, LENGTH, SHUFFLED, TASK
from firewall_ray.labels import soft_block
from firewall_ray.stages.stage import Output, make
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

# The label itself is not read: it is a function of the rates, and another program's labels/ needs no column for it.
RATES = ["pass_rate_weak", "pass_rate_strong"]
SEEN = ["task", "prompt"]  # all that a control may look at
TRAIN = pa.schema([("task", pa.string()), ("length", pa.int32()), ("label", pa.float32())])
Scorer = Callable[[pa.RecordBatch], NDArray[np.float64]]  # a batch with the columns SEEN -> p_weak, (num_rows,), in [0, 1]


@dataclass
class Controls:
    """names: the controls that are there to be compared with. notices: for the report's reader."""

    names: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def run_controls(config: RunConfig, store: ArtifactStore, *, force: bool = False) -> Controls:
    """Write those of length and task that are not finished; the shuffled one is taken where it is (control_shuffled.py).

    What another program wrote under a control's name is used as it is. Raises ArtifactError where a training query's rate is not
    in [0, 1].
    """
    if not config.evaluation.controls:
        return Controls()
    found, labels = Controls(), store.labels().require(["query_id", "split", *SEEN, *RATES])
    train = functools.cache(lambda: read_train(labels))
    for name, fit in FITS.items():
        settings = {"labels": labels.identity()}
        if store.scores(name).state() == "foreign":
            found.notices.append(f"scores/{name} was written by another program, and is taken for {CONTROLS[name]}.")
        elif force or not _is_made(store.scores(name), settings):
            if not len(train()):
                continue
            output = Output.plan("control", store.scores(name), settings, force=force)
            make(config, output, functools.partial(_write, output, labels, fit, train()))
        found.names.append(name)
    if not found.names:
        found.notices.append(
            f"labels/ has no train split to fit {CONTROLS[LENGTH]} and {CONTROLS[TASK]} on, so nothing here says whether a router "
            "knows more than these."
        )
    shuffled = store.scores(SHUFFLED)
    if shuffled.state() == "finished" and (shuffled.settings() or {}).get("prompts") != labels.identity():
        found.notices.append(f"scores/{SHUFFLED} is of other labels and left out. Make it again: jobs/report.py --controls --force")
    elif shuffled.state() in ("finished", "foreign"):
        found.names.append(SHUFFLED)
    return found


def _is_made(scores: Dataset, settings: dict[str, Any]) -> bool:
    return scores.state() == "finished" and scores.settings() == settings


def _write(output: Output, labels: Dataset, fit: Callable[[pa.Table], Scorer], train: pa.Table) -> dict[str, int]:
    scorer = fit(train)
    num_queries = 0
    output.begin()
    with output.dataset.writer() as writer:
        for batch in labels.iter_batches(["query_id", *SEEN]):
            p_weak = pa.array(scorer(batch), pa.float32())
            writer.write_batch(pa.RecordBatch.from_arrays([batch["query_id"], p_weak], schema=output.dataset.schema))
            num_queries += batch.num_rows
    return {"queries": num_queries, "train": len(train)}


def read_train(labels: Dataset) -> pa.Table:
    """Task, prompt's length in characters and soft_block of the train split: rows of TRAIN. Streamed, no prompt is kept."""
    kept = []
    for batch in labels.iter_batches(["query_id", "split", *SEEN, *RATES]):
        rows = batch.filter(pc.equal(batch["split"], "train"))
        weak, strong = (rows[rate].to_numpy() for rate in RATES)
        # Negated, so that NaN is wrong too.
        wrong = np.flatnonzero(~((weak >= 0) & (weak <= 1) & (strong >= 0) & (strong <= 1)))
        if len(wrong):
            raise ArtifactError(
                f"labels: {labels.path}: the pass rates of training query {rows['query_id'][wrong[0]]} are {weak[wrong[0]]} and "
                f"{strong[wrong[0]]}; they must lie in [0, 1]. Make the labels again: {labels.made_by} --config FILE --force"
            )
        columns = [rows["task"], pc.utf8_length(rows["prompt"]), pa.array(soft_block(weak, strong))]
        kept.append(pa.RecordBatch.from_arrays(columns, schema=TRAIN))
    return pa.Table.from_batches(kept, TRAIN)


def fit_length(train: pa.Table) -> Scorer:
    """A regression tree on the prompt's length, its leaves of 2% of the training queries, 10 at least.

    No fixed form, since long questions may be the hard ones, the easy ones or neither. A weak control would flatter the routers:
    see docs/lab_log.md for the regressions that know less.
    """
    leaf = max(10, len(train) // 50)
    tree = DecisionTreeRegressor(min_samples_leaf=leaf, random_state=0)
    # (num_train, 1): one feature.
    tree.fit(train["length"].to_numpy()[:, None], train["label"].to_numpy())
    return lambda batch: np.asarray(tree.predict(pc.utf8_length(batch["prompt"]).to_numpy()[:, None]))


def fit_task(train: pa.Table) -> Scorer:
    """The mean label of the query's task; of a task that is not in the train split, the mean of all."""
    means = train.group_by("task").aggregate([("label", "mean")])
    tasks = means["task"].combine_chunks()
    # The last is of unknown tasks, whose place is -1.
    values = np.append(means["label_mean"].to_numpy(), pc.mean(train["label"]).as_py())
    return lambda batch: values[pc.index_in(batch["task"], value_set=tasks).fill_null(-1).to_numpy()]


FITS: dict[str, Callable[[pa.Table], Scorer]] = {LENGTH: fit_length, TASK: fit_task}
