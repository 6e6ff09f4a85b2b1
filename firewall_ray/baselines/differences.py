"""What each baseline here does otherwise than its own paper: the lines that paper.html and docs/baselines.md show. No I/O."""

from firewall_ray.config.run import RunConfig

BART = "facebook/bart-large-cnn"
ROUTELLM_EMBEDDING = "text-embedding-3-small"


def differences(name: str, config: RunConfig) -> list[str]:
    """Of one baseline under this config, a sentence each; of any other name none.

    What holds for every run comes first, then what this config chose otherwise than the baseline's paper.
    """
    baselines = config.baselines
    said = list(ALWAYS.get(name, ()))
    source = baselines.embedding.openai.model if baselines.embedding.openai else None
    if name in ("knn", "routellm_mf") and source != ROUTELLM_EMBEDDING:
        said.append(f"Embeddings are not {ROUTELLM_EMBEDDING}'s.")
    if name == "routellm_mf_published":
        if source != ROUTELLM_EMBEDDING:
            said.append(f"The weights were trained on {ROUTELLM_EMBEDDING}, and get {source}.")
        if baselines.embedding.column == "prompt":
            said.append("The whole prompt is embedded, and not the bare question.")
    if name == "routellm_mf" and baselines.routellm_mf.noise != 0.1:
        said.append(f"Noise of {baselines.routellm_mf.noise:g} on the embeddings; their script's alpha is 0.1.")
    if name.startswith("hybrid_llm"):
        hybrid, bart = baselines.hybrid_llm, baselines.bart_score.path
        if hybrid.epochs != 5:
            said.append(f"{hybrid.epochs} epochs; their paper has 5.")
        # A single response each is all that the deterministic label reads.
        if name != "hybrid_llm_det" and min(hybrid.num_responses, config.sampling.num_samples) != 10:
            said.append(f"{min(hybrid.num_responses, config.sampling.num_samples)} responses of each model; their paper has 10.")
        if bart != BART:
            said.append("BARTScore is by " + ("a small BART trained from scratch." if bart is None else f"{bart}."))
        if config.router.backbone.path != "microsoft/deberta-v3-large":
            said.append("The router's backbone is this run's own; their paper has DeBERTa-v3-large.")
    return said


_HYBRID = (
    "Trained on this run's queries and not on MixInstruct.",
    "BARTScore is the likelihood of the reference given the response; of several references the nearest counts.",
    "Learning rate, batch size and length are those of our own routers, so that the label alone differs.",
)
ALWAYS: dict[str, tuple[str, ...]] = {
    "margin_sampling": (
        "The margin is of the greedy answer's first token alone, and routes before the rest is written.",
        "No threshold is tuned: queries are ranked by their margin.",
    ),
    "knn": ("No baseline of the paper: ours, since surveys of routing found it hard to beat.",),
    "routellm_mf_published": (
        "Their models gpt-4-1106-preview and mixtral-8x7b-instruct-v0.1, RouteLLM's own pair, stand for strong and weak.",
    ),
    "routellm_mf": (
        "Trained on this run's outcomes: a battle is a pair of samples of which one is right, weighed by how often it comes.",
        "RouteLLM's battles are votes of people and of GPT-4 over many models.",
        "Embeddings lose the training queries' mean and are scaled to length 1.",
        "The projection has a bias, as in RouteLLM's paper and not in its code.",
        "The epoch with the lowest validation loss is kept; their script keeps the last, and adds noise when it validates too.",
    ),
    "hybrid_llm_det": _HYBRID,
    "hybrid_llm_prob": _HYBRID,
    "hybrid_llm_trans": (*_HYBRID, "t is searched among 200 quantiles of the shortfalls that occur, for their grid."),
}
