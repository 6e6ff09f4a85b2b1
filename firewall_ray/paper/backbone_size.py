"""How large a router's network is beside another: what a backbone's rates are scaled by where they are neither given nor measured.

Parameters without the embeddings, of which a token reads one row: passes cost 2 FLOP a parameter and token, 6 in training. No
weights are read: the network is laid out on torch's `meta` device.
"""

import torch
from transformers import AutoModelForSequenceClassification

from firewall_ray.config.router import RouterConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import FirewallRayError
from firewall_ray.paper.variants import backbone_config
from firewall_ray.router.model import load_tokenizer, network_config


def relative_size(config: RunConfig, stage: str) -> tuple[float, float] | None:
    """For "train NAME" and "score NAME" of one of `paper.backbones`: the run's own rate, and how many times its size NAME is.

    None for other stages, without the run's own rate, or where a network's files cannot be read here.
    """
    verb, _, name = stage.partition(" ")
    plan = config.paper.plan
    own = {"train": plan.training_queries_per_s, "score": plan.scoring_queries_per_s}.get(verb)
    if own is None or name not in config.paper.backbones:
        return None
    sizes = [num_parameters(router) for router in (config.router, backbone_config(config, name).router)]
    return None if None in sizes else (own, float(sizes[1] or 0) / float(sizes[0] or 1))


def num_parameters(router: RouterConfig) -> int | None:
    """Of the network less its token embeddings; None where its files are not to be had."""
    try:
        network = network_config(router, load_tokenizer(router.backbone))
    except FirewallRayError:
        return None
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(network)
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.get_input_embeddings().parameters())
