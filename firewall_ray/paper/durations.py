"""What finished stages took, read from their manifests: the plan's rates, and the times that it is held against.

Runs in the driver. A manifest says when its dataset was begun and finished, so that the start of actors, validation and
checkpoints are part of what is measured. A job that went on where another was killed counts from where it went on.
"""

from collections.abc import Iterable
from datetime import datetime

from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

MEASURED_ROWS = 100  # with fewer in one job the start of its engines is all that was measured


def busy_s(datasets: Iterable[Dataset]) -> float | None:
    """Seconds in which any of them was made, a time that several share counted once; None unless all are finished."""
    spans = []
    for dataset in datasets:
        if dataset.state() != "finished":
            return None
        manifest = dataset.manifest()
        spans.append(tuple(datetime.fromisoformat(manifest[name]).timestamp() for name in ("started_at", "finished_at")))
    return union(spans) or None


def union(spans: Iterable[tuple[float, ...]]) -> float:
    """Length of what the spans (start, end) cover.

    >>> union([(0, 2), (1, 4), (6, 7)])
    5.0
    """
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def sampled_tokens_per_s(store: ArtifactStore, key: str, replicas: int) -> float | None:
    """Sampled tokens a second of one engine, over the whole of the job that finished the samples; None where that says nothing.

    A job that went on where another was killed, or that added queries, made a part of the rows in all of its time.
    """
    samples = store.samples(key)
    elapsed_s = busy_s([samples])
    if elapsed_s is None:
        return None
    counts = samples.manifest()["counts"]
    num_rows = counts["num_rows"]
    num_rows_made = counts.get("num_rows_made", num_rows)  # older manifests do not say
    if num_rows_made < min(num_rows, MEASURED_ROWS):
        return None
    # Sampled tokens are counted over all rows, whichever job made them.
    tokens = counts["num_sampled_tokens"] * num_rows_made / num_rows if num_rows else 0
    return tokens / elapsed_s / replicas if tokens else None


def sampling_s(store: ArtifactStore, key: str) -> float | None:
    """Of the job that made all the samples; None where several made them."""
    samples = store.samples(key)
    elapsed_s = busy_s([samples])
    counts = samples.manifest()["counts"] if elapsed_s is not None else {}
    return elapsed_s if counts and counts.get("num_rows_made", counts["num_rows"]) == counts["num_rows"] else None
