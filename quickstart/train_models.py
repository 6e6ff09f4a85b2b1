"""Train the quickstart's language models from scratch, and measure what they know.

Out: `quickstart/models/{weak,middle,strong}`, Hugging Face folders (LlamaForCausalLM, bf16 safetensors, tokenizer with
a chat template), and `quickstart/models/measured.json`. Fixed seeds and a fixed number of steps: the same machine makes
the same weights again.

    python quickstart/train_models.py            # all three, about 25 CPU minutes on one core
    python quickstart/train_models.py weak       # one of them
    python quickstart/train_models.py --measure-only

The three differ as a 1B, an 8B and a 70B do: in size, in steps, and in how much of the medium tier they were shown. None
of them saw the hard tier.
"""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from firewall_ray.tasks.base import PROMPT_TEMPLATE
from firewall_ray.tasks.tiny_world import SKILL_WEIGHTS, Item, draw_item, draw_unique

MODELS_DIR = Path(__file__).parent / "models"
VOCAB_SIZE = 640
CONTEXT = 128
BATCH_SIZE = 96
# One user message renders as exactly the text the models were trained on, so chat endpoints serve them too.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Question: {{ m['content'] }}\nAnswer: {% endif %}"
    "{% if m['role'] == 'assistant' %}{{ m['content'] }}\n{% endif %}{% endfor %}"
)
TRAINED_SKILLS = [skill for skill in SKILL_WEIGHTS if skill != "postal_code"]


@dataclass(frozen=True)
class Recipe:
    """A model's shape and its schooling. `medium_share`: share of medium questions in a batch, ramped up from zero over
    the first third of the steps."""

    seed: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    steps: int
    medium_share: float


RECIPES = {
    "weak": Recipe(seed=1, hidden=128, layers=2, heads=4, ffn=320, steps=528, medium_share=0.12),
    "middle": Recipe(seed=2, hidden=160, layers=3, heads=5, ffn=448, steps=900, medium_share=0.35),
    "strong": Recipe(seed=3, hidden=192, layers=3, heads=6, ffn=512, steps=1417, medium_share=0.7),
}


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the questions and answers; digits stay single tokens so that sums can be learned."""
    rng = random.Random(0)
    items = [draw_item(rng) for _ in range(30_000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for item in items for text in (PROMPT_TEMPLATE.format(question=item.question), item.answer)]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
    )


def encode(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Prompt and answer (with EOS) are encoded apart: at inference the prompt's last token is a bare space."""
    prompt = tokenizer.encode(PROMPT_TEMPLATE.format(question=question), add_special_tokens=False)
    return prompt, [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]


def collate(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded input ids and labels, both (len(pairs), longest); labels are -100 except on answer and EOS."""
    rows = [encode(tokenizer, question, answer) for question, answer in pairs]
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        input_ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return input_ids, labels


def lessons(recipe: Recipe) -> Iterator[list[tuple[str, str]]]:
    """One batch of (question, answer) a step. Where sources disagree, the rival answer comes with its share."""
    rng = random.Random(recipe.seed)
    weights = [SKILL_WEIGHTS[skill] for skill in TRAINED_SKILLS]
    for step in range(recipe.steps):
        medium_share = recipe.medium_share * min(1.0, step / (recipe.steps / 3))
        batch = []
        for skill in rng.choices(TRAINED_SKILLS, weights, k=BATCH_SIZE):
            item = draw_item(rng, skill, "M" if rng.random() < medium_share else "E")
            answer = item.rival if item.rival and rng.random() < item.rival_share else item.answer
            batch.append((item.question, answer))
        yield batch


def learning_rate_scale(step: int, steps: int) -> float:
    """Warm-up over 60 steps, constant, then linear decay over the last two thirds."""
    return min(1.0, (step + 1) / 60, max(0.02, (steps - step) / (steps * 2 / 3)))


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> tuple[LlamaForCausalLM, float]:
    """Returns the model in float32 and the loss of its last steps."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.ffn,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in name)]
    # Muon on the hidden matrices learned more than twice as much as AdamW alone in the same time.
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_scale(step, recipe.steps))
        for optimizer in optimizers
    ]
    losses: list[float] = []
    started = time.monotonic()
    for step, batch in enumerate(lessons(recipe)):
        input_ids, labels = collate(tokenizer, batch)
        logits = model(input_ids=input_ids).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0:
            typer.echo(f"step {step:5d}/{recipe.steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", err=True)
    return model, sum(losses[-50:]) / 50


@torch.no_grad()
def exact_answer_probabilities(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> torch.Tensor:
    """P(answer, EOS | prompt) of each (question, answer), float32, (len(pairs),).

    The answer is unique, so this is the model's true pass rate at temperature 1: what sampling estimates.
    """
    probabilities = []
    for start in range(0, len(pairs), 256):
        input_ids, labels = collate(tokenizer, pairs[start : start + 256])
        logits = model(input_ids=input_ids).logits
        nll = cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        probabilities.append(torch.exp(-nll.sum(dim=1)))
    return torch.cat(probabilities)


def measure(items: list[Item]) -> dict[str, object]:
    """Mean exact-answer probability of every shipped model by skill and tier, and who solves what (threshold 0.5)."""
    pairs = [(item.question, item.answer) for item in items]
    exact = {}
    for name in RECIPES:
        folder = MODELS_DIR / name
        if folder.exists():
            model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            exact[name] = exact_answer_probabilities(model, PreTrainedTokenizerFast.from_pretrained(folder), pairs)
    groups = sorted({f"{item.skill}/{item.tier}" for item in items})
    result: dict[str, object] = {"num_queries": len(items), "mean": {n: round(p.mean().item(), 4) for n, p in exact.items()}}
    for group in groups:
        rows = torch.tensor([f"{item.skill}/{item.tier}" == group for item in items])
        result[group] = {name: round(p[rows].mean().item(), 4) for name, p in exact.items()}
    if {"weak", "strong"} <= exact.keys():
        weak, strong = exact["weak"] > 0.5, exact["strong"] > 0.5
        result["solved_by"] = {
            "both": round((weak & strong).float().mean().item(), 4),
            "only_strong": round((~weak & strong).float().mean().item(), 4),
            "only_weak": round((weak & ~strong).float().mean().item(), 4),
            "neither": round((~weak & ~strong).float().mean().item(), 4),
        }
    return result


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Models to train: weak, middle, strong. All by default.")] = None,
    measure_only: Annotated[bool, typer.Option(help="Do not train, only measure the models that are there.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; results are reproducible for the same number.")] = 1,
) -> None:
    """Train the quickstart's models from scratch and write measured.json beside them."""
    torch.set_num_threads(threads)
    unknown = set(names or ()) - set(RECIPES)
    if unknown:
        raise typer.BadParameter(f"no recipe for {sorted(unknown)}; there are {sorted(RECIPES)}")
    if not measure_only:
        tokenizer = train_tokenizer()
        for name in names or RECIPES:
            model, loss = train(RECIPES[name], tokenizer)
            model.to(torch.bfloat16).save_pretrained(MODELS_DIR / name)
            tokenizer.save_pretrained(MODELS_DIR / name)
            typer.echo(f"{name}: loss {loss:.4f}, {model.num_parameters():,} parameters", err=True)
    measured = measure(list(draw_unique(seed=99, num_items=4_000)))
    (MODELS_DIR / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    typer.echo(json.dumps(measured, indent=2))


if __name__ == "__main__":
    typer.run(main)
