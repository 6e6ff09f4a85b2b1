"""The shipped models' true pass rates, by one forward pass in transformers: what sampling must agree with."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def exact_pass_rates(model_key: str, queries: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """P(answer, EOS | prompt) of each query, float64, (num_queries,). One query at a time: nothing to pad, nothing to get wrong."""
    folder = f"quickstart/models/{model_key}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    probabilities = []
    with torch.no_grad():
        for query in queries:
            prompt = tokenizer(query["prompt"])["input_ids"]
            answer = tokenizer(json.loads(query["reference"])["answer"])["input_ids"] + [tokenizer.eos_token_id]
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            log_probs = torch.log_softmax(logits.double(), dim=-1)
            probabilities.append(log_probs[torch.arange(len(answer)), torch.tensor(answer)].sum().exp().item())
    return np.array(probabilities)
