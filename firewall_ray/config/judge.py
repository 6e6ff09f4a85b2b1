"""The section `queries.tasks.custom.<name>.judge`: a model that says whether an answer is right."""

from typing import Any, Literal

from pydantic import Field

from firewall_ray.config.base import Positive, Strict
from firewall_ray.config.http import BaseUrl, KeyVariable
from firewall_ray.config.models import OpenAIModelConfig

DEFAULT_RUBRIC = """\
An answer is right when everything that it says about the question is correct, and it answers all that was asked. Where a reference
answer is given, a right answer agrees with it in substance: other words, another format, a longer explanation are no fault.
An answer is wrong when any part that matters is false, missing, made up or contradicts the reference. Length, style and a
confident tone count for nothing."""


class JudgeConfig(Strict):
    """A model behind an OpenAI-compatible /v1/chat/completions; see docs/your_own_task.md."""

    base_url: BaseUrl = Field(description="Up to and including /v1.")
    model: str = Field(description="The id that the server knows the judge by. Stronger than the models that it judges.")
    api_key_env: KeyVariable | None = Field(None, description="Name of the environment variable that holds the key. None: no key.")
    mode: Literal["absolute", "pairwise"] = Field(
        "absolute",
        description="absolute: is the answer right by the rubric? pairwise: an answer is right unless it loses, in both orders, "
        "against the strong model's greedy answer; two calls an answer.",
    )
    rubric: str = Field(DEFAULT_RUBRIC, min_length=1, description="When an answer is right, or better, in your words.")
    max_tokens: Positive = Field(256, description="Of the judge's answer. A judge that thinks before it answers needs thousands.")
    temperature: float = Field(0.0, ge=0, description="0: the same question gets the same verdict, as far as the server can.")
    max_calls: Positive = Field(
        10_000,
        description="Answers of the judge that grading one model may pay for. Then the job ends and says so; the verdicts are "
        "kept, so the same command goes on from there with as many calls again.",
    )
    max_concurrency: Positive = Field(32, description="Calls in flight; stay below the server's rate limit.")
    timeout_s: float = Field(120, gt=0, description="For one call.")
    outage_s: float = Field(
        600,
        gt=0,
        description="The job ends, resumable, once the judge has taken no call for so long (429, 503, refused connections).",
    )
    labelled: str | None = Field(
        None,
        description="A file (.jsonl, .csv, .parquet) of `question`, `answer`, `correct`, and `reference` where there is one: "
        "answers that a person has judged; the report says how far the judge agrees. pairwise: and `anchor`, the answer to beat.",
    )

    @property
    def server(self) -> OpenAIModelConfig:
        """Where it is asked, as the engines know it."""
        shared = ("base_url", "model", "api_key_env", "max_concurrency", "timeout_s", "outage_s")
        # A model that refuses temperature 0 is asked without it: of a judge that is no other question.
        return OpenAIModelConfig(engine="openai", api="chat", greedy="sampled", **{name: getattr(self, name) for name in shared})

    def content(self) -> dict[str, Any]:
        """What decides a verdict. Not where the model is served, who pays, and how fast."""
        return self.model_dump(mode="json", include={"model", "mode", "rubric", "max_tokens", "temperature"})
