"""The row types: one pyarrow schema a dataset, and the meaning of every column.

This file is the contract between the jobs, and with outside programs: a folder of Parquet files with these columns is a
valid input whoever wrote it. Types are the ones our writers write; readers accept any type that casts to them safely
(see `store/dataset.py`).
"""

import pyarrow as pa

SPLITS = ("train", "validation", "test")

# The paper's zero-shot prompt, with no system prompt (Sec. 4.1): what the router reads of a question, and a base model is asked.
PROMPT_TEMPLATE = "Question: {question}\nAnswer: "

# Of a sample. no_answer: there is nothing to read in it. truncated: cut off by the limit of tokens, and not right so far.
VERDICTS = ("right", "wrong", "no_answer", "truncated")


def optional(name: str, type_: pa.DataType) -> pa.Field:
    """A column that our writers write and that others' files, or our older ones, may lack: it then reads as nulls."""
    return pa.field(name, type_, metadata={"optional": "true"})


def is_optional(field: pa.Field) -> bool:
    return b"optional" in (field.metadata or {})


QUERIES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),  # stable: a hash of task and question, see tasks/base.py
        pa.field("task", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # one of SPLITS
        pa.field("question", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # what the router and the models read; in a chat see engines/prompts.py
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
        optional("finish_reasons", pa.list_(pa.string())),  # of each sample: stop, or length where the limit of tokens cut it off
        pa.field("greedy_text", pa.string()),  # the completion at temperature 0
        pa.field("greedy_margin", pa.float32()),  # p1 - p2 of the first greedy token, in [0, 1]
        pa.field("num_prompt_tokens", pa.int32()),
        pa.field("error", pa.string()),  # null when fine; then every other column but the first three is null
        optional("greedy_finish_reason", pa.string()),
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
        optional("verdicts", pa.list_(pa.string())),  # of each sample, one of VERDICTS; right is what is correct
        optional("greedy_verdict", pa.string()),
    ]
)

# What a judge was asked and said; see judge/cache.py. Rows are only ever added.
JUDGEMENTS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # a hash of the judge's model, its settings and the whole prompt
        pa.field("model", pa.string(), nullable=False),  # the judge's id
        pa.field("verdict", pa.string()),  # right, wrong, no_answer; of pairs first, second, tie; null where none could be read
        pa.field("answer", pa.string(), nullable=False),  # all that it said
        pa.field("judged_at", pa.timestamp("us", "UTC"), nullable=False),
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

# What a router is trained on as a control: labels that belong to other queries.
SHUFFLED_LABELS = pa.schema(
    [
        *(LABELS.field(name) for name in ("query_id", "split", "prompt", "pass_rate_weak", "pass_rate_strong")),
        pa.field("control_shuffled", pa.float32(), nullable=False),  # soft_block, permuted within the split
    ]
)

# What the baselines read and make on the way to their scores; see baselines/.

EMBEDDINGS = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32()), nullable=False),  # of the prompt; every row as long
    ]
)

QUALITIES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("qualities", pa.list_(pa.float32()), nullable=False),  # BARTScore of each sample: mean log-likelihood, at most 0
        pa.field("greedy_quality", pa.float32(), nullable=False),
    ]
)

HYBRID_DESIGNS = ("hybrid_llm_det", "hybrid_llm_prob", "hybrid_llm_trans")

HYBRID_LABELS = pa.schema(
    [
        *(LABELS.field(name) for name in ("query_id", "task", "split", "prompt", "pass_rate_weak", "pass_rate_strong")),
        *(pa.field(design, pa.float32(), nullable=False) for design in HYBRID_DESIGNS),
    ]
)

# What the serving application decided, one row a request that a score decided. Read as scores: a query that was asked twice
# is there twice, and query_id is the one that `jobs/score.py --queries` gives to a prompt without id.
DECISIONS = pa.schema(
    [
        *SCORES,
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),  # when the request arrived
        pa.field("router", pa.string(), nullable=False),  # the version on its card
        pa.field("threshold", pa.float64(), nullable=False),  # -inf and inf at the strong fractions 0 and 1
        pa.field("strong_fraction", pa.float64(), nullable=False),  # the target in force, in [0, 1]
        pa.field("route", pa.string(), nullable=False),  # weak or strong: the model that was to answer
        pa.field("decided", pa.string(), nullable=False),  # what the score chose, as x-firewall-decided; not `route` in shadow mode
        pa.field("answered_by", pa.string()),  # not `route` after a fallback; null where neither model answered
        pa.field("reason", pa.string(), nullable=False),  # score, sticky (decided when the conversation began) or shadow
        pa.field("fallback", pa.string()),  # why `route` gave no answer: dead, overloaded, timeout or failed
        pa.field("endpoint", pa.string(), nullable=False),  # chat, completions, responses or messages
        pa.field("streams", pa.bool_(), nullable=False),
        pa.field("status", pa.int32(), nullable=False),  # HTTP; 499 when the client left, 502 when a stream broke
        pa.field("prompt_tokens", pa.int32()),  # of a stream that was cut off estimated, completion_tokens those that were sent
        pa.field("completion_tokens", pa.int32()),
        pa.field("router_s", pa.float64()),  # seconds from arrival to the decision,
        pa.field("first_byte_s", pa.float64()),  # to the model's first byte,
        pa.field("total_s", pa.float64()),  # and to the last
        pa.field("key_name", pa.string()),  # who asked, as the config calls the API key
        optional("cost_usd", pa.float64()),  # of the answer, by serving.prices; estimated where it was not seen to its end
        optional("arm", pa.string()),  # main, or canary where another router or fraction had this share of the traffic
        optional("request_id", pa.string()),  # as x-request-id in the answer's header, in the log and in the trace
        pa.field("text", pa.string()),  # what the router read, before its template; null unless decision_log.keep_text
    ]
)

# The requests that no score decided, one row each: the client named the model, or the router could not say. What DECISIONS says of
# the others, in a dataset of its own, since rows without a score can't be read as scores.
OTHER_REQUESTS = pa.schema(
    [
        *(DECISIONS.field(name) for name in ("time", "route", "answered_by")),
        pa.field("strong_fraction", pa.float64()),  # null where the client named the model
        pa.field("reason", pa.string(), nullable=False),  # requested, fraction, router-timeout, router-failed or no-text
        *(DECISIONS.field(name) for name in DECISIONS.names[DECISIONS.names.index("fallback") :]),
    ]
)
