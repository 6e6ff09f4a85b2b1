"""labels/ of the run, of the rounds before, and of this one -> relabel/<round>/folded/, on which the new router is trained.

Runs in the driver; rows are streamed, and an id a query stays in memory.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa

from firewall_ray.config.run import RunConfig
from firewall_ray.relabel.stores import RoundStore
from firewall_ray.stages.stage import Output, StageResult, make
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore


def run_fold(config: RunConfig, store: ArtifactStore, round_store: RoundStore, *, force: bool = False) -> StageResult:
    """Write folded/. The rounds before are those whose queries this round's draw left out."""
    earlier = round_store.drawn().manifest()["counts"]["earlier_rounds"]
    # In order of precedence, see `fold`; the keys are what the counts in the manifest are called.
    sources = {"run": store.labels()}
    sources |= {f"round {name}": RoundStore(store.root, name).labels() for name in earlier}
    sources["this_round"] = round_store.labels()
    folded = round_store.folded()
    settings = {"labels": [labels.require().identity() for labels in sources.values()]}
    output = Output.plan("fold", folded, settings, force=force)

    def write() -> dict[str, int]:
        counts: Counter[str] = Counter()
        output.begin()
        with folded.writer() as writer:
            for number, rows in fold(list(sources.values())):
                writer.write_table(rows)
                counts[list(sources)[number]] += len(rows)
        return {"labels": counts.total(), **counts}

    return make(config, output, write)


def fold(sources: Sequence[Dataset]) -> Iterator[tuple[int, pa.Table]]:
    """The rows of all sources with the number of theirs. A query that comes again is left out: what is in service was judged by
    the label that came first.
    """
    seen: set[str] = set()
    for number, labels in enumerate(sources):
        for batch in labels.iter_batches():
            # Asked before the batch is added: within a source an id comes once, as the label stage sees to.
            is_new = [query_id not in seen for query_id in batch["query_id"].to_pylist()]
            rows = pa.Table.from_batches([batch]).filter(pa.array(is_new, pa.bool_()))
            seen.update(rows["query_id"].to_pylist())
            yield number, rows
