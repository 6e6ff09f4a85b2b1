"""decisions/ -> relabel/<round>/drawn/: queries of the decision log that have no label yet, each once.

Runs in the driver; rows are streamed, and what stays in memory is an id a query of the log, and the texts that are drawn.

Every distinct query has the same chance, whatever its score, its route, and how often it was asked. That is what keeps the
comparison at the end honest: a part of the drawn queries is held out, and its means estimate those of all the log's queries.
Drawn near the threshold, or among those of one route, it would estimate something that depends on the very router that is to be
judged; drawn by request, a query asked a thousand times would outweigh all others, and lie on both sides of the split. Drawn
queries that cannot be graded are left out later: what is held out then stands for those that can, and says nothing of the others.
"""

import heapq
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa

from firewall_ray.config.base import PairConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError
from firewall_ray.policy import tie_hash
from firewall_ray.relabel.stores import DRAWN, FOLDER, RoundStore
from firewall_ray.schemas import PROMPT_TEMPLATE
from firewall_ray.stages.stage import Output, StageResult, make
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import prompt_id


class Drawn(NamedTuple):
    """A row of `stores.DRAWN`. question: what the router read, before its template."""

    query_id: str
    question: str
    prompt: str


def run_draw(
    config: RunConfig, store: ArtifactStore, round_store: RoundStore, *, limit: int | None = None, force: bool = False
) -> StageResult:
    """Draw the round's queries, at most `limit`. The log goes on growing: once drawn, they are the round's.

    Raises ArtifactMissing without a log or labels, ArtifactError where the log has no query to draw.
    """
    drawn = round_store.drawn()
    # Without the log's identity, which changes as the log grows: a round would draw anew whenever it went on.
    settings = {"limit": limit, "seed": config.relabel.seed, "pair": config.pair.model_dump()}
    output = Output.plan("draw", drawn, settings, force=force)

    def write() -> dict[str, object]:
        decisions = store.decisions().require(["query_id", "text"])
        earlier = earlier_rounds(store, config.pair, but=round_store.name)
        labelled = [store.labels(), *(RoundStore(store.root, name).labels() for name in earlier)]
        # By the prompt's id: a query of a benchmark has its id of task and question, and the log does not know the task.
        known = {
            prompt_id(prompt)
            for labels in labelled
            for batch in labels.require(["prompt"]).iter_batches(["prompt"])
            for prompt in batch["prompt"].to_pylist()
        }
        rows = (
            row
            for batch in decisions.iter_batches(["query_id", "text"])
            for row in zip(batch["query_id"].to_pylist(), batch["text"].to_pylist(), strict=True)
        )
        chosen, counts = draw(rows, known, limit, config.relabel.seed)
        if not chosen:
            raise ArtifactError(f"{decisions.kind}: {decisions.path} has nothing to draw: {_sentence(counts)}")
        output.begin()
        with drawn.writer() as writer:
            writer.write_table(pa.Table.from_pylist([row._asdict() for row in chosen], schema=DRAWN))
        return {"queries": len(chosen), **counts, "earlier_rounds": earlier}

    return make(config, output, write)


def draw(
    rows: Iterable[tuple[str, str | None]], known: Container[str], limit: int | None, seed: int
) -> tuple[list[Drawn], Counter[str]]:
    """The queries with the smallest seeded hashes: a uniform draw that no order of rows or files changes, and that a larger
    `limit` only adds to. rows: query_id and text. known: ids that are not wanted. Also returns what became of the log's rows.
    """
    # All of them, so that the result says 0 rather than nothing.
    counts = Counter(rows=0, without_text=0, unreadable=0, distinct=0, labelled_before=0)

    def candidates() -> Iterator[tuple[float, Drawn]]:
        seen = set()
        for query_id, text in rows:
            counts["rows"] += 1
            if not text:
                counts["without_text"] += 1
            # An unreadable row is not seen: one of the same id may follow whose text fits.
            elif query_id not in seen:
                prompt = prompt_of(query_id, text)
                if prompt is None:
                    counts["unreadable"] += 1
                    continue
                seen.add(query_id)
                counts["distinct"] += 1
                if query_id in known:
                    counts["labelled_before"] += 1
                else:
                    yield tie_hash(query_id, seed), Drawn(query_id, text, prompt)

    # nsmallest holds `limit` texts at a time, however long the log is.
    found = sorted(candidates()) if limit is None else heapq.nsmallest(limit, candidates())
    return [query for _, query in found], counts


def prompt_of(query_id: str, text: str) -> str | None:
    """The prompt that the router scored: what it read of a chat in the template, a completion's as it is.

    Told apart by the id, its hash. None where neither fits: a text that UTF-8 could not hold, or a log written by others.
    """
    prompts = (PROMPT_TEMPLATE.format(question=text), text)
    return next((prompt for prompt in prompts if prompt_id(prompt) == query_id), None)


def earlier_rounds(store: ArtifactStore, pair: PairConfig, *, but: str) -> list[str]:
    """The other rounds whose labels are finished, of the same pair, sorted by name."""
    names = [name for name in store.children(FOLDER) if name != but]
    return [name for name in names if _pair_of(RoundStore(store.root, name)) == (pair.weak, pair.strong)]


def _pair_of(round_store: RoundStore) -> tuple[str, str] | None:
    labels = round_store.labels()
    if labels.state() != "finished":
        return None
    settings = labels.manifest()["settings"]
    return settings["weak"], settings["strong"]


def _sentence(counts: Counter[str]) -> str:
    text = f"of {counts['rows']:,} rows {counts['without_text']:,} have no text"
    if counts["distinct"]:
        return f"{text}, and all of the {counts['distinct']:,} queries are labelled already. Collect more, then run it again."
    return f"{text}, and {counts['unreadable']:,} no text that fits their query_id. Set serving.decision_log.keep_text: true."
