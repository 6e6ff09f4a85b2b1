"""labels/ -> scores/control_shuffled/: our own training on labels that were dealt out anew, so that there is nothing to learn.

A router that looks as good as this one owes it to chance, or to a leak. Its labels and its router lie in controls/, where no
application looks for a router to serve. Runs in the driver; Ray trains and scores as for any router.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from firewall_ray.config.run import RunConfig
from firewall_ray.evaluation.controls import SHUFFLED
from firewall_ray.labels import soft_block
from firewall_ray.schemas import SHUFFLED_LABELS
from firewall_ray.stages.controls import RATES
from firewall_ray.stages.score import run_scoring
from firewall_ray.stages.stage import Output, Stage, StageResult, make
from firewall_ray.stages.train_router import CHECKPOINTS_FOLDER, run_training
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

KEPT = ["query_id", "split", "prompt", *RATES]
SHUFFLED_SPLITS = ("train", "validation")  # all that training reads


class ControlStore(ArtifactStore):
    """The run's ROOT, but for routers: theirs is `controls/routers/`.

    >>> ControlStore("/tmp/run").router("control_shuffled").path
    '/tmp/run/controls/routers/control_shuffled'
    """

    made_by = "python jobs/report.py --controls"

    def shuffled_labels(self) -> Dataset:
        return self._dataset("controls/labels", "controls/labels", SHUFFLED_LABELS, self.made_by)

    def router(self, name: str) -> Dataset:
        return self._dataset("routers", f"controls/routers/{name}", super().router(name).schema, self.made_by)


def run_control_shuffled(config: RunConfig, store: ArtifactStore, *, force: bool = False) -> list[StageResult]:
    """Shuffle, train, score; each is skipped where it is finished. Raises what stages.train_router and stages.score raise."""
    place = ControlStore(store.root)
    labels = store.labels().require(KEPT)
    settings = {"labels": labels.identity(), "seed": config.router.seed}
    output = Output.plan("shuffle", place.shuffled_labels(), settings, force=force)
    results = [make(config, output, lambda: _write(output, labels, config.router.seed))]
    results.append(run_training(config, place, labels=place.shuffled_labels(), designs=[SHUFFLED], force=force))
    results.append(run_scoring(config, place, designs=[SHUFFLED], force=force))
    return results


def _write(output: Output, labels: Dataset, seed: int) -> dict[str, Any]:
    dealt = shuffled_labels(labels, seed)
    used = dict.fromkeys(dealt, 0)
    output.begin()
    with output.dataset.writer() as writer:
        for batch in labels.iter_batches(KEPT):
            rows = batch.filter(pc.is_in(batch["split"], pa.array(SHUFFLED_SPLITS)))
            column = np.empty(rows.num_rows, dtype=np.float32)
            for split, of_split in dealt.items():
                here = _is(rows, split)
                column[here] = of_split[used[split] :][: here.sum()]
                used[split] += int(here.sum())
            writer.write_batch(pa.RecordBatch.from_arrays([*rows.columns, pa.array(column)], schema=output.dataset.schema))
    return used


def shuffled_labels(labels: Dataset, seed: int) -> dict[str, NDArray[np.float32]]:
    """soft_block of the train and the validation split, float32, (num_queries of the split,), each permuted within its split.

    The validation split too: it chooses the epoch, and true labels there would choose the one that happens to be right most often.
    """
    found: dict[str, list[NDArray[np.float32]]] = {split: [] for split in SHUFFLED_SPLITS}
    for batch in labels.iter_batches(["split", *RATES]):
        label = soft_block(*(batch[rate].to_numpy() for rate in RATES))
        for split, of_split in found.items():
            of_split.append(label[_is(batch, split)])
    # No seed below 0 there.
    rng = np.random.default_rng([seed < 0, abs(seed)])
    return {split: rng.permutation(np.concatenate(of_split)) for split, of_split in found.items()}


def _is(batch: pa.RecordBatch, split: str) -> NDArray[np.bool_]:
    return np.asarray(pc.equal(batch["split"], split).to_numpy(zero_copy_only=False))


STAGE = Stage(
    "control_shuffled",
    run_control_shuffled,
    reads=("labels",),
    writes=("controls", "scores", CHECKPOINTS_FOLDER),
    needs_ray=True,
)
