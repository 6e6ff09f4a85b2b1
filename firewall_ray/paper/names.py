BASELINE_ROWS: dict[str, tuple[str, ...]] = {
    "Hybrid LLM": ("hybrid_llm_prob",),
    "RouteLLM (MF)": ("routellm_mf",),
    "Margin Sampling": ("margin_sampling",),
}
