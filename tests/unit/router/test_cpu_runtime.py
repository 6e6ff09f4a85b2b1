"""A compiled router against torch, which it must agree with or give way to."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_router import CAUSAL, MAX_LENGTH, SCRATCH, fill_folder
from torch import Tensor, nn

from firewall_ray.config.base import BackboneConfig
from firewall_ray.errors import ModelError
from firewall_ray.router import predict
from firewall_ray.router.cpu_runtime import compile_for_cpu
from firewall_ray.router.predict import RouterPredictor
from firewall_ray.schemas import PROMPT_TEMPLATE
from firewall_ray.tasks.tiny_world import draw_unique


def said_by_predict(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == predict.__name__]


@pytest.mark.parametrize("backbone", [SCRATCH, CAUSAL], ids=["deberta", "llama"])
def test_a_compiled_router_scores_as_torch_does_alone_and_in_batches(
    tmp_path: Path, backbone: BackboneConfig, caplog: pytest.LogCaptureFixture
) -> None:
    fill_folder(tmp_path, backbone)
    plain = RouterPredictor(tmp_path, num_threads=1)
    compiled = RouterPredictor(tmp_path, num_threads=1, compiled=True)
    assert said_by_predict(caplog) == []  # it was compiled indeed
    prompts = [PROMPT_TEMPLATE.format(question=item.question) for item in draw_unique(3, 1_000)]
    prompts[:3] = ["", "x", "long " * MAX_LENGTH]
    expected = plain.predict(prompts)
    assert expected.std() > 0.01
    np.testing.assert_allclose(compiled.predict(prompts), expected, atol=1e-5)
    alone = np.concatenate([compiled.predict([prompt]) for prompt in prompts[:100]])
    np.testing.assert_allclose(alone, expected[:100], atol=1e-5)


class DecidesByLength(nn.Module):
    """Doubles the logit of long rows in Python, which compiling does not see."""

    config: Any = SimpleNamespace(model_type="odd", vocab_size=100)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        logits = (input_ids * attention_mask).float().sum(1, keepdim=True) / 2_000
        return SimpleNamespace(logits=2 * logits if input_ids.shape[1] > 20 else logits)


def test_a_network_that_decides_in_python_is_refused() -> None:
    model: Any = DecidesByLength()
    with pytest.raises(ModelError, match="odd router differ from torch's"):
        compile_for_cpu(model, num_threads=1, max_length=40)
    short = compile_for_cpu(model, num_threads=1, max_length=20)
    # 3 x (10 + 20) / 2,000
    torch.testing.assert_close(short(torch.tensor([[30, 60, 9]]), torch.tensor([[1, 1, 0]])), torch.tensor([[0.045]]))


def test_a_router_that_cannot_be_compiled_is_run_by_torch_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise ModelError("No.")

    fill_folder(tmp_path)
    monkeypatch.setattr(predict, "compile_for_cpu", refuse)
    predictor = RouterPredictor(tmp_path, num_threads=1, compiled=True)
    assert said_by_predict(caplog) == ["No. Torch runs it, which takes longer."]
    np.testing.assert_array_equal(predictor.predict(["a", "b"]), RouterPredictor(tmp_path, num_threads=1).predict(["a", "b"]))
