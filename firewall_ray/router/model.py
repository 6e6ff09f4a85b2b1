"""The router's network and tokenizer: a DeBERTa-v2 or Llama made from scratch, or any sequence-classification checkpoint.

A causal LM gets the same head as an encoder. It reads the last token that is not padding, the only one that has seen the
whole prompt; so prompts are padded on the right and the network's config knows the pad token.

Runs on training workers and, for the checks alone, in the driver. One logit; sigmoid(logit) estimates the label (Eq. 2).
"""

import logging

from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from firewall_ray.config.base import BackboneConfig
from firewall_ray.config.router import RouterConfig
from firewall_ray.errors import ConfigError, ModelError


def load_tokenizer(backbone: BackboneConfig) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer, padding on the right and with a pad token. Raises ModelError when it cannot be loaded.

    Causal models often have no pad token: then EOS takes its place, since padding is masked anyway.
    """
    path, field = (
        (backbone.tokenizer, "router.backbone.tokenizer") if backbone.tokenizer else (backbone.path, "router.backbone.path")
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as e:  # transformers raises OSError, ValueError, KeyError, JSON and Rust errors here
        raise ModelError(f"{field}: no tokenizer can be loaded from {path!r}: {_first_line(e)} {_WAY_OUT}") from e
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"{field}: the tokenizer of {path!r} has neither a pad nor an EOS token to pad with. Add one.")
        tokenizer.pad_token = tokenizer.eos_token
    # Whatever the checkpoint says: `data.pad` pads on the right, and what is cut off is the end.
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    return tokenizer


def network_config(router: RouterConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The network's configuration with one label, checked against the tokenizer and `router.max_length`.

    Cheap: no weights are read, so the driver can refuse a bad config before any worker starts. Raises ModelError when the
    checkpoint cannot be read or does not fit the tokenizer, ConfigError when prompts may be longer than its positions.
    """
    backbone = router.backbone
    if backbone.path is None:
        return _scratch_config(router, tokenizer)
    try:
        # One label, so one logit, whatever the checkpoint was trained for.
        config = AutoConfig.from_pretrained(backbone.path, num_labels=1)
    except Exception as e:
        raise ModelError(f"router.backbone.path: no model can be loaded from {backbone.path!r}: {_first_line(e)} {_WAY_OUT}") from e
    # transformers' own table; without this the refusal would come from the workers, once they load the weights.
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ModelError(
            f"router.backbone.path: {backbone.path!r} is a {config.model_type} model, which transformers cannot turn into a "
            "sequence classifier. Choose another backbone."
        )
    # A tokenizer that knows no limit says 10^30.
    limit = min(getattr(config, "max_position_embeddings", None) or router.max_length, tokenizer.model_max_length)
    if router.max_length > limit:
        raise ConfigError(
            f"router.max_length is {router.max_length}, but {backbone.path!r} reads {limit} tokens at most. Lower it."
        )
    vocab_size = getattr(config, "vocab_size", len(tokenizer))
    if len(tokenizer) > vocab_size:
        raise ModelError(
            f"router.backbone.tokenizer: it has {len(tokenizer):,} tokens, but the backbone {backbone.path!r} embeds only "
            f"{vocab_size:,}. Use the backbone's own tokenizer (router.backbone.tokenizer: null)."
        )
    # Causal classifiers read the last token that is not padding, and refuse batches when they do not know it.
    config.pad_token_id = tokenizer.pad_token_id
    return config


def build_model(router: RouterConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The network in float32 with a fresh one-logit head (and fresh weights altogether when backbone.path is null)."""
    config = network_config(router, tokenizer)
    if router.backbone.path is None:
        return AutoModelForSequenceClassification.from_config(config)
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)  # it warns that the head is new; it is meant to be
    try:
        # float32 whatever the checkpoint: DeepSpeed keeps the master weights and casts to bf16 itself.
        # ignore_mismatched_sizes: a checkpoint whose head has other labels loses it instead of being refused.
        return AutoModelForSequenceClassification.from_pretrained(
            router.backbone.path, config=config, dtype="float32", ignore_mismatched_sizes=True
        )
    except Exception as e:
        raise ModelError(f"router.backbone.path: the weights of {router.backbone.path!r} cannot be loaded: {_first_line(e)}") from e


def _scratch_config(router: RouterConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """A small network: a plain Llama, or DeBERTa with v3's choices (relative positions only, shared projections, normalised
    relative embeddings)."""
    backbone = router.backbone
    if backbone.hidden_size % backbone.num_heads:
        raise ConfigError(
            f"router.backbone.hidden_size {backbone.hidden_size} must be a multiple of num_heads {backbone.num_heads}."
        )
    if backbone.architecture == "llama":
        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=backbone.hidden_size,
            num_hidden_layers=backbone.num_layers,
            num_attention_heads=backbone.num_heads,
            intermediate_size=backbone.intermediate_size,
            max_position_embeddings=router.max_length,
            # Left out, they would be 1 and 2 (Llama's), whatever tokens this tokenizer has there.
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            num_labels=1,
        )
    return DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=backbone.hidden_size,
        num_hidden_layers=backbone.num_layers,
        num_attention_heads=backbone.num_heads,
        intermediate_size=backbone.intermediate_size,
        max_position_embeddings=router.max_length,
        # DeBERTa-v3's choices, from here to position_buckets: its config.json on the hub. A prompt is one segment.
        type_vocab_size=0,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_buckets=min(256, router.max_length // 2),  # 256 is v3's; more than the positions there are would never be read
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )


_WAY_OUT = (
    "Give a Hugging Face folder that every node sees, or a hub id that this machine can reach (a gated one needs HF_TOKEN; "
    "without network, download it first)."
)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
