"""The row types: one pyarrow schema a dataset, and the meaning of every column.

This file is the contract between the jobs, and with outside programs: a folder of Parquet files with these columns is a
valid input whoever wrote it. Types are the ones our writers write; readers accept any type that casts to them safely
(see `artifacts.py`).
"""

import pyarrow as pa

SPLITS = ("train", "validation", "test")

QUERIES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),  # stable: a hash of task and question, see tasks/base.py
        pa.field("task", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # one of SPLITS
        pa.field("question", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # what the models and the router read
        pa.field("reference", pa.string(), nullable=False),  # JSON, the task's own form
    ]
)

SAMPLES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),  # the config's key, not the hub path
        pa.field("texts", pa.list_(pa.string())),  # the n sampled completions
        pa.field("num_generated_tokens", pa.list_(pa.int32())),  # of each sample, EOS included
        pa.field("finish_reasons", pa.list_(pa.string())),  # of each sample: stop or length
        pa.field("greedy_text", pa.string()),  # the completion at temperature 0
        pa.field("greedy_margin", pa.float32()),  # p1 - p2 of the first greedy token, in [0, 1]
        pa.field("num_prompt_tokens", pa.int32()),
        pa.field("error", pa.string()),  # null when fine; then every column above but the first three is null
    ]
)

GRADES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("correct", pa.list_(pa.bool_())),  # of each sample
        pa.field("greedy_correct", pa.bool_()),
        pa.field("error", pa.string()),  # carried over from the sample, or the grader's own
    ]
)

# One float32 column per label design (DESIGN section 3; paper Eq. 1-7). Larger always means "send to the weak model".
LABEL_DESIGNS = (
    "hard_label",
    "win_rate",
    "hard_block",
    "hard_block_greedy",
    "soft_block",
    "weak_pass_rate",
    "strong_pass_rate",
)

LABELS = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("num_samples", pa.int32(), nullable=False),  # n, the same for both models
        pa.field("pass_rate_weak", pa.float32(), nullable=False),  # c / n, in [0, 1]
        pa.field("pass_rate_strong", pa.float32(), nullable=False),
        pa.field("greedy_weak", pa.bool_(), nullable=False),
        pa.field("greedy_strong", pa.bool_(), nullable=False),
        *(pa.field(design, pa.float32(), nullable=False) for design in LABEL_DESIGNS),
    ]
)

SCORES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("p_weak", pa.float32(), nullable=False),  # larger: send to the weak model
    ]
)
