from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from firewall_ray.config.base import BackboneConfig
from firewall_ray.config.router import RouterConfig
from firewall_ray.errors import ConfigError, ModelError
from firewall_ray.router.data import encode, pad_rows
from firewall_ray.router.model import build_model, load_tokenizer, network_config

WEAK = "quickstart/models/weak"
SCRATCH = {"path": None, "tokenizer": WEAK, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}


def router(max_length: int = 64, **backbone: object) -> RouterConfig:
    return RouterConfig(backbone=BackboneConfig.model_validate(backbone), max_length=max_length)


LLAMA = {**SCRATCH, "architecture": "llama"}


@pytest.mark.parametrize("backbone", [SCRATCH, LLAMA, {"path": WEAK}], ids=["scratch", "scratch-causal", "causal"])
def test_a_backbone_gives_one_logit_that_ignores_padding(backbone: dict[str, object]) -> None:
    config = router(**backbone)
    tokenizer = load_tokenizer(config.backbone)
    torch.manual_seed(0)
    model = build_model(config, tokenizer).eval()
    ids, _ = encode(tokenizer, ["Question: What is 1 plus 2?", "Question: What is the capital of Zoruland called?"], 64)
    together = model(**dict(zip(("input_ids", "attention_mask"), pad_rows(ids, tokenizer.pad_token_id), strict=True))).logits
    alone = model(**dict(zip(("input_ids", "attention_mask"), pad_rows(ids[:1], tokenizer.pad_token_id), strict=True))).logits
    assert together.shape == (2, 1)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together[0], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", [LLAMA, {"path": WEAK}], ids=["scratch", "checkpoint"])
def test_a_causal_backbone_reads_the_last_token_that_is_not_padding(backbone: dict[str, object]) -> None:
    config = router(**backbone)
    tokenizer = load_tokenizer(config.backbone)
    torch.manual_seed(0)
    model = build_model(config, tokenizer).eval()
    rows = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    ids, mask = pad_rows(rows, tokenizer.pad_token_id)
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = torch.stack([model.score.weight @ hidden[i, len(row) - 1] for i, row in enumerate(rows)])
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected)
    swapped = ids.clone()
    swapped[1, 0] = 20  # the last token has seen the first
    assert abs(model(input_ids=swapped, attention_mask=mask).logits - expected)[1] > 1e-7


def test_a_causal_backbone_whose_tokenizer_has_no_pad_token_pads_with_eos(tmp_path: Path) -> None:
    backbone = {"path": WEAK}
    plain = load_tokenizer(BackboneConfig.model_validate(backbone))
    plain.pad_token = None
    plain.save_pretrained(tmp_path)
    config = router(**backbone, tokenizer=str(tmp_path))
    tokenizer = load_tokenizer(config.backbone)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    model = build_model(config, tokenizer).eval()
    ids, mask = pad_rows([[5, 6, 7], [8]], tokenizer.pad_token_id)
    alone = model(input_ids=torch.tensor([[8]])).logits
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits[1:], alone, atol=1e-5, rtol=0)


def test_a_network_from_scratch_depends_on_word_order() -> None:
    config = router(**SCRATCH)
    tokenizer = load_tokenizer(config.backbone)
    torch.manual_seed(0)
    model = build_model(config, tokenizer).eval()
    for parameter in model.parameters():  # the initial weights are so small that all inputs look alike
        torch.nn.init.normal_(parameter, std=0.3)
    logits = model(input_ids=torch.tensor([[7, 8, 9, 10], [7, 10, 9, 8]])).logits
    assert abs(logits[0] - logits[1]) > 1e-6  # relative positions are on: without them both would be the same


def test_a_missing_folder_names_the_field_and_the_way_out() -> None:
    config = router(path="models/nowhere/to/be/found")
    with pytest.raises(ModelError, match=r"router\.backbone\.path: no tokenizer can be loaded from 'models/nowhere.*hub id"):
        load_tokenizer(config.backbone)


def test_a_missing_tokenizer_names_its_own_field() -> None:
    with pytest.raises(ModelError, match=r"router\.backbone\.tokenizer"):
        load_tokenizer(BackboneConfig(path=None, tokenizer="models/nowhere/to/be/found"))


def test_a_hub_id_out_of_reach_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"router\.backbone\.path.*without network, download it first"):
        load_tokenizer(BackboneConfig(path="firewall-ray/there-is-no-such-model"))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((Path(WEAK) / name).read_bytes())
    config = router(path=str(tmp_path))
    with pytest.raises(ModelError, match=r"router\.backbone\.path: the weights of"):
        build_model(config, load_tokenizer(config.backbone))


def test_max_length_beyond_the_backbones_positions_is_refused() -> None:
    config = router(path=WEAK, max_length=512)
    with pytest.raises(ConfigError, match=r"router\.max_length is 512.*128 tokens at most"):
        network_config(config, load_tokenizer(config.backbone))


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    config = router(path=WEAK)
    tokenizer = load_tokenizer(config.backbone)
    tokenizer.add_tokens(["<one more>"])
    with pytest.raises(ModelError, match=r"641 tokens.*embeds only 640"):
        network_config(config, tokenizer)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    config = router(**{**SCRATCH, "num_heads": 3})
    with pytest.raises(ConfigError, match=r"hidden_size 16 must be a multiple of num_heads 3"):
        network_config(config, load_tokenizer(config.backbone))


def test_a_tokenizer_without_pad_token_pads_with_eos(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(BackboneConfig(path=WEAK))
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(BackboneConfig(path=None, tokenizer=str(tmp_path)))
    assert again.pad_token_id == again.eos_token_id
