"""Inference engines for sampling: vLLM inside the cluster, or any OpenAI-compatible server outside it.

Both are async callables over Arrow batches, run on a Ray Data actor pool: rows with `query_id`, `task` and `prompt` in,
rows of `samples/` out (see `schemas.SAMPLES`).
"""
