"""Prompts to vectors: a causal LM's hidden states, a sentence-transformers model, or an embeddings API. Runs on embedding actors.

Each is called with prompts and returns float32 numbers, (num_prompts, dimension).
"""

from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from transformers import AutoModel

from firewall_ray.config.api_key import read_api_key
from firewall_ray.config.baselines import EmbeddingConfig, OpenAIEmbeddingConfig
from firewall_ray.engines.checkpoint import Checkpoint
from firewall_ray.errors import ModelError, SystemFailure
from firewall_ray.router.data import encode, pad_rows

Embedder = Callable[[Sequence[str]], NDArray[np.float32]]
# Of those that OpenAI's own client tries again (408, 409, 429, all from 500 up): without the 5xx that say "never", such as 501.
RETRYABLE_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})


def make_embedder(source: Checkpoint, embedding: EmbeddingConfig, secret: str | None = None) -> Embedder:
    """The one that the config asks for. source: the model's files. secret: an API's key, never logged."""
    if embedding.openai is not None:
        return OpenAIEmbeddings(embedding.openai, embedding.batch_size, secret)
    return sentence_embedder(source.path, embedding) if embedding.sentence_transformer else HiddenStates(source, embedding)


class HiddenStates:
    """A causal LM's last hidden states, averaged over the prompt's tokens; padding does not count."""

    def __init__(self, source: Checkpoint, embedding: EmbeddingConfig) -> None:
        self._tokenizer = source.tokenizer()
        # Llama's tokenizers have no pad token. Which one stands there does not matter: the mask takes it out.
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        self._device = embedding.torch_device
        # No language model's head. float32: bfloat16's 2 or 3 digits would go to what all prompts share, see `embeddings.centred`.
        model = AutoModel.from_pretrained(source.path, config=source.config(), dtype=torch.float32, **source.model_arguments)
        self._model = model.to(self._device).eval()
        self._embedding = embedding

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """float32, (num_prompts, hidden size)."""
        ids, _ = encode(self._tokenizer, prompts, self._embedding.max_length)
        vectors = np.empty((len(ids), self._model.config.hidden_size), dtype=np.float32)
        # Longest first: what does not fit into memory fails at once. Neighbours are about as long, so little is padding.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
        for start in range(0, len(order), self._embedding.batch_size):
            rows = order[start : start + self._embedding.batch_size]
            # On the right, where a causal model's earlier tokens cannot see the padding.
            input_ids, mask = (t.to(self._device) for t in pad_rows([ids[i] for i in rows], self._tokenizer.pad_token_id))
            states = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state
            # states: float32, (num_rows, longest, hidden size); weights: int64, (num_rows, longest, 1), 0 or 1.
            weights = mask.unsqueeze(-1)
            vectors[rows] = ((states * weights).sum(dim=1) / weights.sum(dim=1)).cpu().numpy()
        return vectors


def sentence_embedder(path: str, embedding: EmbeddingConfig) -> Any:
    """A function from prompts to vectors, pooled as the sentence-transformers model says."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as e:
        raise ModelError(
            "baselines.embedding.sentence_transformer needs the package sentence-transformers on every node: "
            "pip install sentence-transformers. Or set it to null, for the weak model's hidden states."
        ) from e
    model = SentenceTransformer(path, device=embedding.torch_device, model_kwargs={"dtype": torch.float32})
    return lambda prompts: model.encode(list(prompts), batch_size=embedding.batch_size, show_progress_bar=False)


class OpenAIEmbeddings:
    """POST /embeddings of an OpenAI-compatible server, `batch_size` prompts a request, tried again where that may help."""

    def __init__(self, config: OpenAIEmbeddingConfig, batch_size: int, secret: str | None) -> None:
        self._config = config
        self._batch_size = batch_size
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        self._client = httpx.Client(headers=headers, timeout=config.timeout_s)

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Raises SystemFailure where the server refuses or does not answer with one vector a prompt."""
        starts = range(0, len(prompts), self._batch_size)
        try:
            return np.concatenate([self._post(prompts[start : start + self._batch_size]) for start in starts])
        # All but the first: an answer that is no JSON, or JSON of another shape.
        except (httpx.HTTPError, KeyError, TypeError, ValueError) as e:
            raise SystemFailure(f"baselines.embedding.openai.base_url: {self._config.base_url}/embeddings failed: {e!r}") from e

    @retry(
        retry=retry_if_exception(lambda e: _may_pass(e)),
        # The five waits are 0.5, 1, 2, 4, 8 s, and up to a second of chance more, so that actors do not return all at once.
        stop=stop_after_attempt(6),
        wait=wait_exponential_jitter(initial=0.5, max=30),
        reraise=True,
    )
    def _post(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        body = {"model": self._config.model, "input": list(prompts)}
        response = self._client.post(f"{self._config.base_url}/embeddings", json=body)
        response.raise_for_status()
        # By the index that each vector carries: one that is missing or out of order would give prompts the vectors of others.
        items = sorted(response.json()["data"], key=lambda item: item["index"])
        if [item["index"] for item in items] != list(range(len(prompts))):
            raise ValueError(f"{len(items)} vectors for {len(prompts)} prompts")
        return np.array([item["embedding"] for item in items], dtype=np.float32)


def api_key(config: OpenAIEmbeddingConfig) -> str | None:
    """The key from this process' environment, see `read_api_key`."""
    return read_api_key(config.api_key_env, "baselines.embedding.openai.api_key_env")


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in RETRYABLE_STATUSES
    return isinstance(error, httpx.TransportError)
