"""What `engine_kwargs` says of a model's files counts wherever they are read, not only in vLLM."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from firewall_ray.config.models import VllmModelConfig
from firewall_ray.engines.checkpoint import Checkpoint
from firewall_ray.engines.prompt_length import check_prompt_lengths, context_length
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.errors import ModelError, TaskError
from firewall_ray.store.joins import LocalRows

WEAK = "quickstart/models/weak"

# A model that comes with its own code: nobody can read its config.json but with trust_remote_code.
CODE = """
from transformers import PretrainedConfig
class OwnConfig(PretrainedConfig):
    model_type = "of_our_own"
    max_position_embeddings = 64
"""


def model(path: Any = WEAK, **settings: Any) -> VllmModelConfig:
    return VllmModelConfig.model_validate({"path": str(path), **settings})


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "own.py").write_text(CODE)
    (folder / "config.json").write_text(json.dumps({"model_type": "of_our_own", "auto_map": {"AutoConfig": "own.OwnConfig"}}))
    return folder


def test_a_model_with_code_of_its_own_is_read_where_that_is_trusted(own_code: Path) -> None:
    assert context_length("weak", model(own_code, engine_kwargs={"trust_remote_code": True})) == 64
    with pytest.raises(ModelError, match=r"models\.weak\.path: no model at"):
        context_length("weak", model(own_code, engine_kwargs={"trust_remote_code": False}))


def test_revision_and_tokenizer_are_those_that_vllm_serves() -> None:
    said = {"revision": "v2", "code_revision": "v3", "hf_token": "hf_secret", "max_num_batched_tokens": 7}
    found = Checkpoint.of(model("some/model", engine_kwargs=said))
    assert found.model_arguments == {"revision": "v2", "code_revision": "v3", "token": "hf_secret"}
    assert found.tokenizer_path == "some/model"
    assert found.tokenizer_arguments["revision"] == "v2"  # as vLLM: the model's, unless it has one of its own
    other = Checkpoint.of(model("some/model", engine_kwargs={**said, "tokenizer": "other", "tokenizer_revision": "v9"}))
    assert (other.tokenizer_path, other.tokenizer_arguments["revision"]) == ("other", "v9")
    assert "hf_secret" not in repr(other) + json.dumps(other.said())
    assert Checkpoint.of(model("some/model")).said() == {} == Checkpoint.at("some/model").said()


def test_overrides_and_engine_kwargs_decide_the_context() -> None:
    own = context_length("weak", model())
    assert context_length("weak", model(engine_kwargs={"hf_overrides": {"max_position_embeddings": own + 5}})) == own + 5
    assert context_length("weak", model(max_model_len=48, engine_kwargs={"max_model_len": 32})) == 32


def test_prompts_are_counted_in_the_tokens_of_the_tokenizer_that_is_served(tmp_path: Path) -> None:
    """A tokenizer in engine_kwargs, and a model folder without one."""
    (tmp_path / "model").mkdir()
    shutil.copy(f"{WEAK}/config.json", tmp_path / "model")
    rows = pa.table({"query_id": ["q"], "task": ["t"], "prompt": ["one two three four five six seven"], "question": [""]})
    queries = LocalRows(rows.to_batches(), rows.schema)
    served = model(tmp_path / "model", max_model_len=3, engine_kwargs={"tokenizer": WEAK})
    with pytest.raises(TaskError, match=r"the prompt of q \(task t\) has \d+ tokens"):
        check_prompt_lengths("weak", served, queries, PromptFormat())
    with pytest.raises(ModelError, match=r"models\.weak: no tokenizer can be loaded from .*model"):
        check_prompt_lengths("weak", model(tmp_path / "model", max_model_len=3), queries, PromptFormat())
