"""Prompts to `p_weak`: the one predictor that scoring, evaluation and serving use.

Runs on a scoring actor or a router replica. A prompt's score does not depend on what it is batched with: padding is
masked and the arithmetic is float32, so scores of the same prompt differ by rounding alone (below 1e-5).
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from pyarrow import fs as pafs
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from firewall_ray.errors import ModelError
from firewall_ray.router.card import CARD_FILE, RouterCard, parse_card
from firewall_ray.router.cpu_runtime import Logits, Network, compile_for_cpu
from firewall_ray.router.data import encode, pad_rows
from firewall_ray.store.dataset import Dataset

logger = logging.getLogger(__name__)


class Scored(NamedTuple):
    """p_weak: float32, (num_prompts,), in [0, 1]. truncated: bool, (num_prompts,): longer than the router reads."""

    p_weak: np.ndarray
    truncated: np.ndarray


class RouterPredictor:
    """A trained router, ready to score.

    folder: a local `routers/<name>/` (its card included). batch_size: prompts in one forward pass. num_threads: torch's
    threads in this process, None leaves them. compiled: take seconds to load for less time a call, with `num_threads` threads
    (default 1); on a CPU alone, and where it fails torch runs the network after all. Raises ModelError when the folder is not a
    whole router.
    """

    max_length: int
    _network: Network

    def __init__(
        self,
        folder: str | Path,
        *,
        batch_size: int = 64,
        device: str = "cpu",
        num_threads: int | None = None,
        compiled: bool = False,
    ) -> None:
        self.card: RouterCard = read_card(folder)
        self._load(Path(folder), self.card.max_length, batch_size, device, num_threads)
        if compiled:
            try:
                self._network = compile_for_cpu(self.model, num_threads or 1, self.max_length)
                # Fewer shapes, each of which is prepared for anew; none of them beyond what the network reads.
                self._multiple = math.gcd(8, self.max_length)
            except ModelError as e:
                logger.warning("%s Torch runs it, which takes longer.", e)

    @classmethod
    def of_weights(cls, folder: str | Path, *, max_length: int, batch_size: int, device: str) -> Self:
        """A predictor over a Hugging Face folder that has no card yet: training, which measures in order to write it."""
        # Past __init__, which reads the card.
        predictor = cls.__new__(cls)
        predictor._load(Path(folder), max_length, batch_size, device, None)
        return predictor

    def _load(self, folder: Path, max_length: int, batch_size: int, device: str, num_threads: int | None) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            # float32 on every device: bf16 has 256 steps between powers of two, which would tie scores that thresholds
            # must tell apart, and a router is small next to what it routes to.
            model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        except Exception as e:
            raise ModelError(
                f"router: {folder} cannot be loaded ({type(e).__name__}: {e}). Train it again: python jobs/train_router.py "
                "--config FILE --force"
            ) from e
        model.config.use_cache = False  # of keys and values, which causal backbones would keep for tokens to come
        self.model = model.to(device).eval()
        # Torch's, unless `compile_for_cpu` replaces it. A batch's width is rounded up to a _multiple; torch takes any.
        self._network = Logits(self.model)
        self._multiple = 1
        self.max_length = max_length
        self.batch_size = batch_size
        self.device = device

    def predict(self, prompts: Sequence[str]) -> np.ndarray:
        """p_weak of each prompt: float32, (num_prompts,), in [0, 1]."""
        return self.score(prompts).p_weak

    def score(self, prompts: Sequence[str]) -> Scored:
        """As `predict`, and which prompts the router read only the beginning of."""
        if not len(prompts):
            return Scored(np.zeros(0, np.float32), np.zeros(0, bool))
        ids, truncated = encode(self.tokenizer, prompts, self.max_length)
        return Scored(self.score_ids(ids), truncated)

    @torch.inference_mode()
    def score_ids(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """p_weak of token ids, float32, (num_rows,). Sorted by length, so that a batch's rows need little padding."""
        p_weak = np.empty(len(ids), dtype=np.float32)
        lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
        order = np.argsort(-lengths, kind="stable")  # longest first: out of memory shows at once
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            input_ids, mask = pad_rows([ids[i] for i in rows], self.tokenizer.pad_token_id, self._multiple)
            logits = self._network(input_ids.to(self.device), mask.to(self.device))[:, 0]
            p_weak[rows] = torch.sigmoid(logits).cpu().numpy()
        return p_weak


def read_card(folder: str | Path) -> RouterCard:
    """The card of a router's folder. Raises ModelError when the folder or its card is missing or wrong."""
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        raise ModelError(f"router: {folder} has no {CARD_FILE}, so it is not a trained router. Run: python jobs/train_router.py")
    return parse_card(path.read_bytes(), str(path))


def local_copy(router: Dataset, folder: str | Path) -> str:
    """A finished router's folder on this machine: its own when the store is local, else downloaded to `folder`."""
    if isinstance(router.filesystem, pafs.LocalFileSystem):
        return router.path
    Path(folder).mkdir(parents=True, exist_ok=True)
    # One by one: `files` leaves out the underscored ones, which training and TensorBoard left.
    for path in router.files():
        name = path.rpartition("/")[2]
        pafs.copy_files(path, str(Path(folder) / name), router.filesystem, pafs.LocalFileSystem())
    return str(folder)
