"""A router's network compiled by OpenVINO for a CPU: same scores, in a fraction of torch's time a call. Runs on router replicas.

benchmarks/router_runtime.py says what it gains, and what others would.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from firewall_ray.errors import ModelError

# (input_ids, attention_mask), int64 (rows, length) -> logits (rows, 1)
Network = Callable[[Tensor, Tensor], Tensor]

TOLERANCE = 1e-4  # of p_weak; float32 differs by 1e-6


class Logits(nn.Module):
    """A sequence classifier as a function of two tensors to one, which is what can be compiled."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def compile_for_cpu(model: PreTrainedModel, num_threads: int, max_length: int) -> Network:
    """`model`, compiled for any number of rows of any length up to `max_length`. Takes seconds, and twice the weights' memory.

    Compiling records one run of the network, so what its code decides by shape or content would be cast in stone. Hence scores
    of other shapes are compared with torch's first: raises ModelError where they differ, or where compiling fails.
    """
    try:
        import openvino  # a second to import
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    except ImportError as e:
        raise ModelError("OpenVINO is not installed (pip install openvino).") from e

    reference = Logits(model).eval()
    rows = torch.ones(2, min(8, max_length), dtype=torch.int64)
    # One tensor given for both would become one input of both.
    example = {"input_ids": rows, "attention_mask": rows.clone()}
    # LATENCY: one call at a time on all threads. f32: on CPUs that have bf16 OpenVINO computes in it unless told not to, and
    # scores would tie.
    settings = {"INFERENCE_NUM_THREADS": num_threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of what is compared below
            # What `openvino.convert_model` does, but that sets the process' logging to errors only and sends telemetry.
            frontend = FrontEndManager().load_by_framework("pytorch")
            decoder = TorchScriptPythonDecoder(reference, example_input=example)
            converted = frontend.convert(frontend.load(decoder))
        compiled = openvino.Core().compile_model(converted, "CPU", settings)
    except Exception as e:
        raise ModelError(f"OpenVINO cannot compile this {model.config.model_type} router: {str(e).splitlines()[0]}") from e

    def network(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.from_numpy(compiled([input_ids.numpy(), attention_mask.numpy()])[0])

    difference = largest_difference(reference, network, model.config.vocab_size, max_length)
    if difference > TOLERANCE:
        raise ModelError(f"OpenVINO's scores of this {model.config.model_type} router differ from torch's by {difference:.2g}.")
    return network


@torch.inference_mode()
def largest_difference(one: Network, other: Network, vocab_size: int, max_length: int) -> float:
    """Of two networks' p_weak, over random tokens in batches of several shapes, padded and not."""
    generator = torch.Generator().manual_seed(0)
    difference = 0.0
    # (rows, tokens): the longest there are, one token, one row and several. None is the shape that was recorded, (2, 8), unless
    # max_length is that short.
    for num_rows, length in ((1, max_length), (3, max(1, max_length // 2)), (1, 1), (2, min(5, max_length))):
        ids = torch.randint(0, vocab_size, (num_rows, length), generator=generator)  # int64 (num_rows, length)
        mask = torch.ones_like(ids)
        # Half of the last row is padding; the first token stays, since a row without any token has no score.
        mask[-1, max(1, length // 2) :] = 0
        scores = (torch.sigmoid(network(ids, mask)).double() for network in (one, other))
        difference = max(difference, float(np.abs(np.subtract(*(each.numpy() for each in scores))).max()))
    return difference
