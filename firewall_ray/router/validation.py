"""Validation on the training workers: every query once, whatever the number of workers."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from firewall_ray.router.data import TokenRows, pad_rows

if TYPE_CHECKING:
    import deepspeed


@torch.no_grad()
def validation_logits(
    engine: "deepspeed.DeepSpeedEngine",
    ids: TokenRows,
    pad_token_id: int,
    batch_size: int,
    count: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """The logit of each row, float64, (num_rows,), the same on every worker. `ids` must be in the same order on all.

    count: told after each batch how many rows are done since the last, over all workers.

    Each worker takes every num_workers-th row, by length. All run the same number of batches, the last of them perhaps on a
    row that does not count, because under ZeRO 3 a forward pass waits for the others.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    order = np.argsort(-ids.lengths, kind="stable")  # longest first: out of memory shows at once
    mine = order[rank::world]
    # (num_rows,), on every worker, which fills in its own rows.
    logits = torch.zeros(len(ids), dtype=torch.float64 if engine.device.type == "cpu" else torch.float32, device=engine.device)
    engine.eval()  # no dropout: the same weights have the same loss
    # Over the rows of the worker that has the most, rounded up: the last batch of another may be without rows.
    for start in range(0, -(-len(ids) // world), batch_size):
        rows = mine[start : start + batch_size]
        input_ids, mask = pad_rows([ids[i] for i in (rows if len(rows) else order[:1])], pad_token_id)
        output = engine(input_ids=input_ids.to(engine.device), attention_mask=mask.to(engine.device)).logits[:, 0]
        if len(rows):
            logits[rows] = output.to(logits.dtype)
        # A batch of this worker's stands for one of each worker; capped, since their last ones may be short.
        count(min(len(ids), (start + batch_size) * world) - min(len(ids), start * world))
    engine.train()
    dist.all_reduce(logits)  # the sum: every row was filled in by one worker and is 0 on the others
    return logits.double().cpu().numpy()


def bce(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean binary cross-entropy of sigmoid(logits) against soft labels (paper Eq. 2), stable for any logit.

    >>> round(bce(np.array([0.0, 0.0]), np.array([0.25, 1.0])), 4)  # ln 2
    0.6931
    """
    # -y log s(x) - (1 - y) log(1 - s(x)) = log(1 + e^x) - y x, with s the sigmoid.
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    # 1 / (1 + e^-x), without an overflow where x is far below 0.
    return np.exp(-np.logaddexp(0, -logits))


def validation_metrics(logits: np.ndarray, validation: Mapping[str, Any], design: str, seed: int) -> dict[str, float]:
    """BCE against the design's labels, and the APGR that routing by these scores would have."""
    from firewall_ray.evaluation.metrics import apgr

    return {
        "validation_bce": bce(logits, validation[design]),
        "validation_apgr": apgr(
            sigmoid(logits), validation["pass_rate_weak"], validation["pass_rate_strong"], validation["query_id"], seed=seed
        ),
    }
