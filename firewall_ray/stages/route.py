"""A user's own queries, routed under an exact budget of strong-model calls: `jobs/score.py --queries`.

Rows in: a Parquet file or folder with a `prompt` column, or a `question` column (then the prompt is made from the router's
own template), and perhaps `query_id`. Rows out, in the same order: all columns, `query_id`, `p_weak` and `route`. Runs in
the driver, with scoring on the actor pool. The table is held in memory: the budget is over all of its rows at once.
"""

import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import ray.data
from pyarrow import fs as pafs

from firewall_ray.cluster.connect import connected
from firewall_ray.config.router import ScoringConfig
from firewall_ray.config.run import RayConfig
from firewall_ray.errors import ArtifactError, ArtifactMissing, ConfigError, StorageFailure
from firewall_ray.policy import exact_budget
from firewall_ray.router.card import RouterCard
from firewall_ray.stages.score import PASSES_PER_CALL, card_of, scored_batches
from firewall_ray.store.casting import castable
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.locations import check_folder, open_location
from firewall_ray.tasks.base import prompt_id

ADDED_COLUMNS = ("p_weak", "route")


def route_file(
    store: ArtifactStore,
    router: str,
    queries: str,
    out: str,
    scoring: ScoringConfig,
    *,
    strong_fraction: float | None = None,
    num_strong: int | None = None,
    seed: int = 0,
    ray_config: RayConfig | None = None,
) -> dict[str, Any]:
    """Send exactly `num_strong`, or round(strong_fraction * num_queries), of the queries to the strong model.

    queries, out: local paths or URIs. Give one of `strong_fraction` in [0, 1] and `num_strong`. Raises ConfigError on a bad
    budget or `out`, ArtifactError on a bad table, both before Ray is joined; `out` appears only when it is whole.
    """
    check_budget(strong_fraction, num_strong)
    check_out(out, queries)
    card = card_of(store, router)
    table = read_queries(queries)
    if num_strong is None:
        assert strong_fraction is not None
        # Python rounds halves to the even number: 0.5 of 5 queries is 2.
        num_strong = round(strong_fraction * len(table))
    if num_strong > len(table):
        raise ConfigError(f"--num-strong {num_strong}: {queries} has only {len(table)} queries. Choose from 0 to {len(table)}.")
    prompts = prompts_of(table, card, queries)
    table = with_query_ids(table, prompts, queries)
    with connected(ray_config or RayConfig()):
        p_weak = _scores(prompts, store, router, scoring)
    strong = exact_budget(p_weak, table["query_id"].to_pylist(), num_strong, seed)
    route = pa.array(np.where(strong, "strong", "weak"), pa.string())
    _write(table.append_column("p_weak", pa.array(p_weak, pa.float32())).append_column("route", route), out)
    return {"stage": "route", "action": "run", "path": out, "router": router, "num_queries": len(table), "num_strong": num_strong}


def check_budget(strong_fraction: float | None, num_strong: int | None) -> None:
    """Exactly one of the two, and in its range. Raises ConfigError."""
    if (strong_fraction is None) == (num_strong is None):
        raise ConfigError("--queries needs a budget: one of --strong-fraction (0 to 1) and --num-strong (a count).")
    if strong_fraction is not None and not 0 <= strong_fraction <= 1:
        raise ConfigError(f"--strong-fraction {strong_fraction}: must lie in [0, 1]; 0.3 sends 30% to the strong model.")
    if num_strong is not None and num_strong < 0:
        raise ConfigError(f"--num-strong {num_strong}: must not be negative.")


def check_out(out: str, queries: str) -> None:
    """Raises ConfigError where the routed rows could not be written there, or would be among the queries."""
    filesystem, path = open_location("--out", out)
    try:
        if out.endswith("/") or filesystem.get_file_info(path).type == pafs.FileType.Directory:
            raise ConfigError(f"--out {out} is a folder. Name a file in it, such as {out.rstrip('/')}/routed.parquet.")
        check_folder("--out", filesystem, path.rpartition("/")[0])
    except OSError as e:
        raise StorageFailure(f"--out {out} cannot be reached: {e}") from e
    theirs, source = open_location("--queries", queries)
    local = isinstance(filesystem, pafs.LocalFileSystem) and isinstance(theirs, pafs.LocalFileSystem)
    # Links are followed where that is possible: two names may be one file.
    target, place = (Path(path).resolve(), Path(source).resolve()) if local else (PurePosixPath(path), PurePosixPath(source))
    if filesystem.type_name == theirs.type_name and (target == place or place in target.parents):
        raise ConfigError(f"--out {out} lies in --queries {queries}, so it would be read as queries the next time. Choose another.")
    if local:
        # The nearest folder that exists: the others are made, if this one lets us.
        above = next(folder for folder in Path(target).parents if folder.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            raise ConfigError(f"--out {out}: this user may not write in {above}. Choose another folder.")


def read_queries(queries: str) -> pa.Table:
    """The whole table: the columns of all files, and those that folders such as `split=train` name; null where a file lacks one.

    Raises ArtifactMissing when there is nothing, ArtifactError when it is empty, not Parquet, or has a column of two types.
    """
    filesystem, path = open_location("--queries", queries)
    kind = filesystem.get_file_info(path).type
    if kind == pafs.FileType.NotFound:
        raise ArtifactMissing(f"--queries {queries}: there is no such file or folder.")
    try:
        # The folders above a single file say nothing about its rows.
        partitioning = "hive" if kind == pafs.FileType.Directory else None
        dataset = pads.dataset(path, filesystem=filesystem, format="parquet", partitioning=partitioning)
        # Files without a column give nulls for it.
        table = dataset.replace_schema(_all_columns(dataset, queries)).to_table()
    except (pa.ArrowException, OSError) as e:
        raise ArtifactError(f"--queries {queries} cannot be read as Parquet: {e}") from e
    if not len(table):
        raise ArtifactError(f"--queries {queries} has no rows, so there is nothing to route.")
    taken = [name for name in ADDED_COLUMNS if name in table.column_names]
    if taken:
        raise ArtifactError(f"--queries {queries} already has the columns {taken}, which routing adds. Rename or drop them.")
    return table


def _all_columns(dataset: pads.Dataset, queries: str) -> pa.Schema:
    """Of every file, for pyarrow itself takes the first file's and drops what others have beyond them."""
    schema = pa.schema([])
    named: set[str] = set()
    for fragment in dataset.get_fragments():
        named |= pads.get_partition_keys(fragment.partition_expression).keys()
        found = fragment.physical_schema.remove_metadata()
        twice = [name for name in found.names if found.names.count(name) > 1]
        if twice:
            raise ArtifactError(f"--queries {queries}: {fragment.path} has the column {twice[0]!r} twice. Keep one.")
        try:
            schema = pa.unify_schemas([schema, found])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as e:
            raise ArtifactError(
                f"--queries {queries}: {fragment.path} has a column of another type than files before it: {e}"
            ) from e
    both = sorted(named & set(schema.names))
    if both:
        raise ArtifactError(f"--queries {queries}: folders are called {both[0]}=..., and files have that column too. Rename one.")
    return pa.schema([*schema, *(field for field in dataset.schema if field.name in named)])


def prompts_of(table: pa.Table, card: RouterCard, queries: str) -> list[str]:
    """The `prompt` column, or the router's template over the `question` column. Raises ArtifactError naming the row."""
    name = next((name for name in ("prompt", "question") if name in table.column_names), None)
    if name is None:
        raise ArtifactError(
            f"--queries {queries} needs a `prompt` column (what the models read) or a `question` column (then the router's "
            f"template makes the prompt). It has {table.column_names}."
        )
    texts = _texts(table, name, queries)
    return texts if name == "prompt" else [card.prompt_template.format(question=text) for text in texts]


def with_query_ids(table: pa.Table, prompts: list[str], queries: str) -> pa.Table:
    """The table with a unique `query_id`. Where it has none, a hash of the prompt; repeats of a prompt get -2, -3, ...

    Repeats are traffic like any other and keep their rows. Given ids that repeat are refused, since they name a row.
    """
    if "query_id" in table.column_names:
        ids = _texts(table, "query_id", queries)
        repeated = [name for name, count in Counter(ids).items() if count > 1]
        if repeated:
            rows = [row for row, name in enumerate(ids) if name == repeated[0]]
            raise ArtifactError(
                f"--queries {queries}: query_id {repeated[0]!r} is in rows {rows[:5]} (and {len(repeated) - 1} more ids repeat). "
                "Make them unique, or drop the column: then each row gets an id."
            )
        return table
    seen: Counter[str] = Counter()
    made = []
    for prompt in prompts:
        name = prompt_id(prompt)
        seen[name] += 1
        made.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return table.append_column("query_id", pa.array(made, pa.string()))


def _texts(table: pa.Table, name: str, queries: str) -> list[str]:
    column = table[name]
    # Numbers, dates and truth values would cast to texts, but are no prompts; nor do ids of numbers break ties as texts do.
    if not castable(column.type, pa.string()):
        raise ArtifactError(f"--queries {queries}, column {name!r} is {column.type}, must be string. Cast it in your file first.")
    try:
        column = column.cast(pa.string())
        column.validate(full=True)
    except pa.ArrowException as e:
        raise ArtifactError(f"--queries {queries}, column {name!r} is not text in UTF-8: {e}") from e
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise ArtifactError(f"--queries {queries}, column {name!r}: null in row {row} (from 0); every row needs a value.")
    return column.to_pylist()


def _scores(prompts: list[str], store: ArtifactStore, router: str, scoring: ScoringConfig) -> np.ndarray:
    """float32, (num_prompts,), in the order of `prompts` whatever order the actors finish in."""
    # The row's number is its id on the way: the user's own ids come back with the table.
    rows = pa.array(range(len(prompts)), pa.int64())
    table = pa.table({"query_id": rows.cast(pa.string()), "prompt": pa.array(prompts, pa.string())})
    step = PASSES_PER_CALL * scoring.batch_size
    # A block is what an actor takes at once.
    blocks = [table.slice(start, step) for start in range(0, len(table), step)]
    # A row that is lost stays NaN, which `exact_budget` refuses.
    p_weak = np.full(len(prompts), np.nan, dtype=np.float32)
    for batch in scored_batches(ray.data.from_arrow(blocks), len(prompts), store, [router], scoring):
        p_weak[batch["query_id"].cast(pa.int64()).to_numpy()] = batch[router].to_numpy()
    return p_weak


def _write(table: pa.Table, out: str) -> None:
    """Whole or not at all: a local file is moved into place, an object store shows an object when it is closed."""
    filesystem, path = open_location("--out", out)
    local = isinstance(filesystem, pafs.LocalFileSystem)
    target = f"{path}.tmp" if local else path
    try:
        parent = path.rpartition("/")[0]
        if parent:
            filesystem.create_dir(parent, recursive=True)
        pq.write_table(table, target, filesystem=filesystem, compression="zstd")
        if local:
            filesystem.move(target, path)
    except OSError as e:
        raise StorageFailure(f"--out {out} cannot be written: {e}. Choose a file in a folder that this user may write.") from e
