"""The numbers of the paper itself, for the rows beside ours; only those that are known, and only where the setting is the same.

Peng et al., "Firewall Routing: Blocking Leads to Better Hybrid Inference for LLMs", EMNLP 2025, pages 6540-6565
(aclanthology.org/2025.emnlp-main.331). See docs/reproduction.md.
"""

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.config.run import RunConfig

# APGR of the paper's router on its three benchmarks. No intervals are printed there.
# Table 1, Ours (Soft Block): 55.00, 66.65 and 53.13. The pass rates beside them fit the mean of the 11 PGR values, `apgr_mean`.
APGR = {"triviaqa": 0.550, "gsm8k": 0.667, "humaneval": 0.531}
NAME = "Firewall Routing, as published"

# Sec. 4.1 names Llama3.2-1B and Llama3.1-70B, and not whether base or Instruct; base is our reading.
WEAK, STRONG, BACKBONE = "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-70B", "microsoft/deberta-v3-large"
NUM_SAMPLES, EPOCHS = 32, 10


def same_setting(config: RunConfig) -> bool:
    """Whether the run is the paper's: its pair, its number of samples, its backbone and epochs (Sec. 4.1)."""
    paths = []
    for key in (config.pair.weak, config.pair.strong):
        model = config.models[key]
        # Which weights a server has behind a name is not known here.
        paths.append(None if isinstance(model, OpenAIModelConfig) else model.path)
    router = config.router
    run = (*paths, config.sampling.num_samples, router.backbone.path, router.epochs)
    return run == (WEAK, STRONG, NUM_SAMPLES, BACKBONE, EPOCHS)
