"""Labels to padded batches: what the router reads, in training and in prediction alike.

Rows in: labels/ (prompt and one column a design). Rows out, through Ray Data: `input_ids`, the designs' columns, and what
validation needs. Tokenising runs once, in Ray Data tasks; padding runs on the training workers, batch by batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from ray.data.collate_fn import ArrowBatchCollateFn
from ray.train import DataConfig
from transformers import PreTrainedTokenizerBase

from firewall_ray.config.base import BackboneConfig
from firewall_ray.errors import LabelError
from firewall_ray.router.model import load_tokenizer
from firewall_ray.store.dataset import Dataset

VALIDATION_COLUMNS = ("query_id", "pass_rate_weak", "pass_rate_strong")
# The tokenizer gives Python lists, 36 bytes a token: of a whole block of 128 MiB they would be gigabytes in a task.
TOKENIZED_ROWS = 4_096
# Characters that are looked at for each token that is read. Text has 2 to 5 a token, code with its indents 10: what is cut off lies
# beyond max_length tokens anyway. Without it a text of a mebibyte would be tokenised for a second, for its first 512 tokens.
READ_PER_TOKEN = 32


# Tokens --------------------------------------------------------------------------------------------------------------


def encode(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_length: int) -> tuple[list[list[int]], np.ndarray]:
    """Token ids of each prompt, its first `max_length` at most, and which prompts were longer: bool, (num_prompts,).

    Of a prompt only the first `READ_PER_TOKEN * max_length` characters are looked at. A prompt without any token (the
    empty string, where the tokenizer adds none of its own) becomes one pad token, because a network cannot read nothing.
    """
    limit = READ_PER_TOKEN * max_length
    read = [prompt[:limit] for prompt in prompts]
    whole = tokenizer(read, add_special_tokens=True, return_attention_mask=False, verbose=False)["input_ids"]
    truncated = np.array([len(ids) > max_length for ids in whole], dtype=bool)
    if truncated.any():  # again and by the tokenizer, which knows how to keep its closing special tokens
        long = np.flatnonzero(truncated)
        cut = tokenizer([read[i] for i in long], truncation=True, max_length=max_length, return_attention_mask=False)
        for i, ids in zip(long, cut["input_ids"], strict=True):
            whole[i] = ids
    truncated |= np.array([len(prompt) > limit for prompt in prompts], dtype=bool)
    return [ids or [tokenizer.pad_token_id] for ids in whole], truncated


def pad(flat: np.ndarray, lengths: np.ndarray, pad_token_id: int, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and their mask, both int64, (num_rows, longest rounded up to `multiple`).

    flat: int, (sum of lengths,), the rows' ids one after another. lengths: int, (num_rows,), each at least 1.

    >>> pad(np.array([5, 6, 7]), np.array([1, 2]), pad_token_id=0)[0]
    tensor([[5, 0],
            [6, 7]])
    """
    width = -(-int(lengths.max()) // multiple) * multiple
    mask = np.arange(width) < lengths[:, None]  # bool, (num_rows, width)
    ids = np.full(mask.shape, pad_token_id, dtype=np.int64)
    ids[mask] = flat  # numpy fills a mask row by row, which is the order of `flat`
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def pad_rows(rows: Sequence[Sequence[int]], pad_token_id: int, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """`pad` for rows given as lists, or as arrays."""
    lengths = np.array([len(row) for row in rows])
    return pad(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]), lengths, pad_token_id, multiple)


class TokenRows(Sequence[np.ndarray]):
    """Token ids of many rows where Arrow has them: a row is a view, int32, (length,).

    The blocks lie in Ray's object store, which all workers of a node share; beside it a worker holds 16 bytes a row. Lists of
    Python's numbers would take 36 bytes a token of each worker.
    """

    def __init__(self, ids: pa.ChunkedArray, order: np.ndarray) -> None:
        """ids: list<int32>, rows in any order. order: int, (num_rows,): the places in `ids` of the rows wanted."""
        # `values`, not `flatten()`: of a slice it still has all of its parent's numbers, which is what `offsets` count in.
        self._blocks = [chunk.values.to_numpy() for chunk in ids.chunks]  # each int32, flat
        offsets = [chunk.offsets.to_numpy() for chunk in ids.chunks]
        starts = np.concatenate([each[:-1] for each in offsets]).astype(np.int64)  # of each row in its block
        self.lengths = np.concatenate([np.diff(each) for each in offsets]).astype(np.int32)[order]
        self._starts = starts[order]
        # int32, (num_rows,): n + 1 offsets mark n rows.
        self._block_of = np.repeat(np.arange(len(offsets), dtype=np.int32), [len(each) - 1 for each in offsets])[order]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: Any) -> Any:
        start = self._starts[row]
        return self._blocks[self._block_of[row]][start : start + self.lengths[row]]


class Strings(Sequence[str]):
    """Strings that stay in Arrow, which takes their bytes and 4 more; a Python string takes 49 more and a pointer."""

    def __init__(self, column: pa.Array) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: Any) -> Any:
        return self.column[int(row)].as_py()


@dataclass
class Collate(ArrowBatchCollateFn):
    """An Arrow batch of labels to tensors: input_ids and attention_mask int64 (rows, longest), one float32 (rows,) a design.

    `multiple`: GPUs multiply matrices faster whose sides are multiples of 8; a CPU does not care.
    """

    pad_token_id: int
    designs: Sequence[str]
    multiple: int = 1

    def __call__(self, batch: pa.Table) -> dict[str, torch.Tensor]:
        ids = batch["input_ids"]
        lengths = pc.list_value_length(ids).to_numpy()
        # A batch may be a slice of a block: unlike `values`, this gives the slice's own numbers.
        flat = pc.list_flatten(ids).to_numpy()
        input_ids, attention_mask = pad(flat, lengths, self.pad_token_id, self.multiple)
        # np.array copies: Arrow's memory is read-only, and torch warns of tensors that share such memory.
        labels = {design: torch.from_numpy(np.array(batch[design].to_numpy(), dtype=np.float32)) for design in self.designs}
        return {"input_ids": input_ids, "attention_mask": attention_mask, **labels}


# Labels --------------------------------------------------------------------------------------------------------------


def check_labels(labels: Dataset, designs: Sequence[str], num_workers: int, limit: int | None) -> dict[str, int]:
    """Rows of the train and validation splits, at most `limit` of each. Streams the columns; memory: one batch.

    Raises LabelError where the splits are too small to train on, or a design cannot teach: a value outside [0, 1], or the
    same value in every training row.
    """
    counts = {"train": 0, "validation": 0}
    lowest, highest = dict.fromkeys(designs, np.inf), dict.fromkeys(designs, -np.inf)
    for batch in labels.iter_batches(["split", *designs]):  # without prompts, which are most of the bytes
        for split in counts:
            counts[split] += pc.sum(pc.equal(batch["split"], split)).as_py() or 0
        is_train = pc.equal(batch["split"], "train")
        for design in designs:
            _check_range(labels, design, batch[design].to_numpy())
            values = batch[design].filter(is_train).to_numpy()  # of a batch without training rows: none, hence `initial`
            lowest[design] = min(lowest[design], values.min(initial=np.inf))
            highest[design] = max(highest[design], values.max(initial=-np.inf))
    # Range and constancy were checked over all rows, limit or not.
    counts = {split: min(count, limit or count) for split, count in counts.items()}
    if counts["train"] < num_workers:
        raise LabelError(
            f"labels: {labels.path} has {counts['train']} rows of the train split, but router.num_workers is {num_workers} and "
            "each needs at least one. Add training queries (queries.tasks.*.num_train), or lower router.num_workers."
        )
    if counts["validation"] == 0:
        raise LabelError(
            f"labels: {labels.path} has no rows of the validation split, which chooses the best epoch and calibrates the "
            "thresholds. Give the run some: queries.tasks.*.num_validation."
        )
    for design in designs:
        if lowest[design] == highest[design]:
            raise LabelError(
                f"labels: column {design!r} is {lowest[design]:g} in every training row of {labels.path}, so there is nothing to "
                "learn. The two models do not differ on these queries: choose another pair, more queries, or another design."
            )
    return counts


def _check_range(labels: Dataset, design: str, values: np.ndarray) -> None:
    outside = ~((values >= 0) & (values <= 1))  # NaN lies outside too
    if outside.any():
        raise LabelError(
            f"labels: column {design!r} of {labels.path} holds {values[outside][0]}; labels are probabilities in [0, 1]. "
            "Make them again: python jobs/label.py --config FILE --force"
        )


def read_split(
    labels: Dataset, split: str, columns: Sequence[str], backbone: BackboneConfig, max_length: int, limit: int | None
) -> ray.data.Dataset:
    """The tokenised rows of one split, in the files' order: `input_ids` and `columns`. Lazy."""
    wanted = list(dict.fromkeys(["split", "prompt", *columns]))
    # partitioning=None: a folder above that is called split=test, or lr=1e-5, would become a column, over the file's own.
    rows = ray.data.read_parquet(
        labels.files(), filesystem=labels.filesystem, columns=wanted, file_extensions=None, partitioning=None
    )
    rows.context.execution_options.preserve_order = True  # so that limit, shuffle and shards repeat
    # As an expression Arrow filters; a Python function would be called with each row.
    rows = rows.filter(expr=ray.data.expressions.col("split") == split)
    if limit is not None:
        rows = rows.limit(limit)
    settings = {"backbone": backbone, "max_length": max_length, "columns": tuple(columns)}
    return rows.map_batches(_tokenize, fn_kwargs=settings, batch_format="pyarrow", batch_size=TOKENIZED_ROWS, zero_copy_batch=True)


def _tokenize(batch: pa.Table, backbone: BackboneConfig, max_length: int, columns: Iterable[str]) -> pa.Table:
    """In a Ray Data task, once a batch."""
    ids, _ = encode(_cached_tokenizer(backbone), batch["prompt"].to_pylist(), max_length)
    # int32: half of int64 in the object store, and no vocabulary comes near 2^31.
    return batch.select(list(columns)).append_column("input_ids", pa.array(ids, pa.list_(pa.int32())))


# Ray runs many of these tasks in one worker process, which then loads the tokenizer once.
@lru_cache(maxsize=1)
def _cached_tokenizer(backbone: BackboneConfig) -> PreTrainedTokenizerBase:
    return load_tokenizer(backbone)


class FixedShards(DataConfig):
    """Gives every worker its own equal part of `train` for the whole run, and all of `validation`.

    Ray's default splits the stream anew each epoch through one coordinator: 0.1 to 0.5 s an epoch, rows that move between
    workers from run to run. Labels are small once tokenised (4 bytes a token) and are shuffled before they are split, so
    fixed parts cost nothing and a run can be repeated. Equal parts, because workers that take different numbers of
    steps wait for each other forever: the at most num_workers - 1 rows that are left over are not trained on.
    """

    def __init__(self) -> None:
        super().__init__(datasets_to_split=["train"])

    # The other arguments, the workers' handles and nodes, would place the ends of a stream.
    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Ray Train calls this for one dataset at a time. Returns the iterators of each worker."""
        parts = {
            name: dataset.split(world_size, equal=True) if name == "train" else [dataset] * world_size
            for name, dataset in datasets.items()
        }
        return [{name: part[rank].iterator() for name, part in parts.items()} for rank in range(world_size)]


def columns_of(rows: Iterable[pa.Table]) -> dict[str, Any]:
    """Whole columns, sorted by query_id so that every worker sees the same order: `input_ids` as TokenRows, strings as Strings,
    numbers as numpy arrays, (num_rows,). Memory beside the blocks: 16 bytes a row, its strings and numbers."""
    table = pa.concat_tables(rows)
    # uint64, (num_rows,): the row in `table` of each row wanted.
    order = pc.sort_indices(table["query_id"]).to_numpy()
    columns: dict[str, Any] = {}
    for name in table.column_names:
        if name == "input_ids":
            columns[name] = TokenRows(table[name], order)
        elif pa.types.is_string(table[name].type):
            columns[name] = Strings(table[name].take(pa.array(order)).combine_chunks())
        else:
            columns[name] = table[name].to_numpy()[order]
    return columns
