"""BARTScore (Yuan et al. 2021, "BARTScore: Evaluating Generated Text as Text Generation", Eq. 2): Hybrid LLM's quality q.

The mean log-likelihood, over tokens, of the reference given the response under a BART: the direction h -> r, "recall" in their
Sec. 3.2, since a response is good when the reference can be told from it. At most 0, larger is better.

The paper's BART is facebook/bart-large-cnn. Where it is not to be had, `train_small_bart` makes a small one from scratch, which
learns from pairs of (response, reference) what a response says about the right answer. Runs on quality actors and, for the
training, in the driver.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig, BartForConditionalGeneration, PreTrainedTokenizerBase

from firewall_ray.config.baselines import BartScoreConfig
from firewall_ray.errors import ModelError
from firewall_ray.router.data import TokenRows, pad_rows
from firewall_ray.store.joins import Spill, spill_folder

TOKENS = pa.schema([pa.field("source", pa.list_(pa.int32())), pa.field("target", pa.list_(pa.int32()))])


class BartScorer:
    """A BART that scores pairs of texts. folder: a hub id or local folder. Raises ModelError when it cannot be loaded."""

    def __init__(self, folder: str, settings: BartScoreConfig) -> None:
        self.tokenizer = load_bart_tokenizer(folder)
        self.device = settings.torch_device
        self.settings = settings
        try:
            # float32 whatever the checkpoint says: in bfloat16 the rest of a batch would change more than a score's fourth decimal.
            model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
        except Exception as e:  # transformers raises OSError, ValueError, KeyError, JSON and Rust errors here
            raise ModelError(f"baselines.bart_score.path: no BART can be loaded from {folder!r}: {_first_line(e)}") from e
        self.model = model.to(self.device).eval()

    @torch.inference_mode()
    def score(self, responses: Sequence[str], references: Sequence[str]) -> NDArray[np.float32]:
        """BARTScore of each response against its reference: float32, (num_pairs,), at most 0. Sorted by length inside.

        To four decimals: what a pair is batched with changes its score by 1e-7, and Hybrid LLM asks whether one score reaches
        another. Both models' same response must have the same.
        """
        sources, targets = (encode_texts(self.tokenizer, texts, self.settings.max_length) for texts in (responses, references))
        scores = np.empty(len(sources), dtype=np.float32)
        # Longest first: what does not fit into memory fails at once. Neighbours are about as long, so little is padding.
        order = sorted(range(len(sources)), key=lambda i: (len(sources[i]), len(targets[i])), reverse=True)
        for start in range(0, len(order), self.settings.batch_size):
            rows = order[start : start + self.settings.batch_size]
            losses = token_losses(self.model, [sources[i] for i in rows], [targets[i] for i in rows], self.tokenizer.pad_token_id)
            # With BOS, where the tokenizer sets one, and EOS: the mean in the BARTScore authors' own code is over these too.
            lengths = torch.tensor([len(targets[i]) for i in rows], device=self.device)
            scores[rows] = (-losses.sum(dim=1) / lengths).cpu().numpy()
        return scores.round(4)


def token_losses(
    model: torch.nn.Module, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], pad_token_id: int
) -> torch.Tensor:
    """-log p of each target token given its source and the tokens before: (num_pairs, longest target), 0 where it is padding."""
    device = next(model.parameters()).device
    input_ids, mask = (t.to(device) for t in pad_rows(sources, pad_token_id))
    # Padded on the right, where no earlier position of the decoder sees it. The losses of padding itself go out with the mask.
    labels, labels_mask = (t.to(device) for t in pad_rows(targets, pad_token_id))
    # The model feeds `labels` shifted to the right itself, so place j of logits, (num_pairs, longest target, vocabulary), is about
    # labels[:, j]. cross_entropy wants the classes second.
    logits = model(input_ids=input_ids, attention_mask=mask, labels=labels).logits
    return cross_entropy(logits.transpose(1, 2), labels, reduction="none") * labels_mask


def load_bart_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Raises ModelError where there is none, or where it lacks a pad or an EOS token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as e:
        raise ModelError(
            f"baselines.bart_score: no tokenizer can be loaded from {path!r}: {_first_line(e)} Give a Hugging Face folder that "
            "every node sees, or a hub id that this machine can reach; or path: null and a tokenizer, for a small one from scratch."
        ) from e
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise ModelError(f"baselines.bart_score: the tokenizer of {path!r} must have a pad and an EOS token.")
    return tokenizer


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids, the first `max_length` at most, closed by EOS, so that also the empty text is something to read and to end."""
    # A tokenizer that is to cut raises IndexError for no texts at all.
    if not len(texts):
        return []
    end = tokenizer.eos_token_id
    rows = tokenizer(list(texts), truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
    # BART's tokenizer closes a cut text itself; a causal LM's, which the miniature has, sets no EOS.
    return [row if row and row[-1] == end else [*row[: max_length - 1], end] for row in rows]


# From scratch --------------------------------------------------------------------------------------------------------


def train_small_bart(pairs: Iterable[tuple[Sequence[str], Sequence[str]]], settings: BartScoreConfig, folder: Path) -> float:
    """Train a BART on reference-given-response and save it with its tokenizer to `folder`. Returns the last epoch's loss.

    pairs: batch by batch, the responses and as many references. settings.path must be None. Minutes at most: meant for a small task
    on a CPU. In memory: some 50 bytes a pair; the tokens lie on the local disk. Raises ModelError for its tokenizer.
    """
    tokenizer = load_bart_tokenizer(str(settings.tokenizer))
    # Weights and order, all that is random here, are drawn on the CPU: the caller's random state there is given back.
    with spill_folder() as local, torch.random.fork_rng(devices=[]):
        tokens = Spill(_token_batches(tokenizer, pairs, settings.max_length), TOKENS, 1, local / "tokens").bucket(0)
        sources, targets = (TokenRows(tokens[name], np.arange(len(tokens))) for name in TOKENS.names)
        torch.manual_seed(settings.seed)
        model = BartForConditionalGeneration(_scratch_config(tokenizer, settings)).to(settings.torch_device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
        num_steps = settings.epochs * -(-len(sources) // settings.batch_size)
        # torch's default shape: up for the first 30% of the steps, then down along a cosine.
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=num_steps)
        loss_sum = torch.zeros(())
        for _ in range(settings.epochs):
            loss_sum = torch.zeros(())
            for rows in _batches_of_like_length(sources.lengths, settings.batch_size):
                losses = token_losses(model, [sources[i] for i in rows], [targets[i] for i in rows], tokenizer.pad_token_id)
                loss = losses.sum() / int(targets.lengths[rows].sum())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                loss_sum += loss.detach().cpu() * len(rows)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float(loss_sum) / len(sources)


def _token_batches(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[Sequence[str], Sequence[str]]], max_length: int
) -> Iterator[pa.RecordBatch]:
    for batch in pairs:
        yield pa.record_batch([encode_texts(tokenizer, texts, max_length) for texts in batch], TOKENS)


def _batches_of_like_length(lengths: NDArray[np.int32], batch_size: int) -> Iterator[NDArray[np.intp]]:
    """Every row once, in a new order each time; rows of a batch are about as long, so that little is padding."""
    # The noise is less than one token, so that only rows of the same length change places.
    order = np.argsort(lengths + torch.rand(len(lengths)).numpy().astype(np.float64), kind="stable")
    for number in torch.randperm(-(-len(order) // batch_size)).tolist():
        yield order[number * batch_size : (number + 1) * batch_size]


def _scratch_config(tokenizer: PreTrainedTokenizerBase, settings: BartScoreConfig) -> BartConfig:
    return BartConfig(
        vocab_size=len(tokenizer),
        d_model=settings.hidden_size,
        encoder_layers=settings.num_layers,
        decoder_layers=settings.num_layers,
        encoder_attention_heads=settings.num_heads,
        decoder_attention_heads=settings.num_heads,
        encoder_ffn_dim=4 * settings.hidden_size,
        decoder_ffn_dim=4 * settings.hidden_size,
        max_position_embeddings=settings.max_length,
        dropout=0.0,
        init_std=settings.hidden_size**-0.5,  # BART's 0.02 is for 1,024 dimensions; a narrow network would hardly start to learn
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,  # as in every BART
        # For generation alone; BartConfig's own is 2, whatever token that is in another vocabulary.
        forced_eos_token_id=None,
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
