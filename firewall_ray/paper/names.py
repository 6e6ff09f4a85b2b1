"""Which of our scores stand for each of the paper's baseline rows. No numbers, no files: names alone, for tables and figures."""

# The paper's row -> names under scores/, in order of preference: the first that has scores stands for the row, the others are
# rows of ours. What each does otherwise than its own paper says is in `baselines/differences.py`.
BASELINE_ROWS: dict[str, tuple[str, ...]] = {
    # Transformed: Sec. 2 describes labels from a comparison of BARTScores that is biased towards a wanted distribution. The bias
    # is the t of Pr[H >= -t], chosen so that labels spread; the probabilistic label has none.
    # It is also the one that Hybrid LLM's own paper recommends where the weak model is far behind, as 1B is behind 70B.
    "Hybrid LLM": ("hybrid_llm_trans", "hybrid_llm_prob", "hybrid_llm_det"),
    # "downloadable pre-trained weights" (Sec. 4.1). Where a run has no embeddings API the one trained on its outcomes is shown.
    "RouteLLM (MF)": ("routellm_mf_published", "routellm_mf"),
    "Margin Sampling": ("margin_sampling",),
}
