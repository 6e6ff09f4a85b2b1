"""What answers cost, and how much may be spent: `prices` and `spend_caps` of the section `serving`."""

from pydantic import Field, model_validator

from firewall_ray.config.base import Name, Strict


class PriceConfig(Strict):
    """Of one model, in US dollars: by the million tokens, as models are bought, or by the second of a GPU, as your own are."""

    prompt: float | None = Field(None, ge=0, description="A million tokens of prompts.")
    cached_prompt: float | None = Field(
        None, ge=0, description="A million tokens of prompts that the model's server had in its cache. None: as `prompt`."
    )
    completion: float | None = Field(None, ge=0, description="A million tokens of answers.")
    gpu_second: float | None = Field(
        None,
        ge=0,
        description="In place of the others: a second of one of the model's GPUs, which the requests that it works on share. What "
        "a GPU costs an hour / 3,600; divided by its share of busy time, where idle GPUs are to be paid for too.",
    )

    @model_validator(mode="after")
    def _by_tokens_or_by_time(self) -> "PriceConfig":
        by_tokens = (self.prompt, self.completion)
        if self.gpu_second is None and None in by_tokens:
            raise ValueError("give prompt and completion (dollars per million tokens), or gpu_second alone.")
        if self.gpu_second is not None and (*by_tokens, self.cached_prompt) != (None, None, None):
            raise ValueError("gpu_second stands alone: tokens of a model that is paid for by time cost nothing more.")
        return self

    def cost_usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0, gpu_s: float = 0.0) -> float:
        """Of one answer. cached_tokens: of the prompt's. gpu_s: seconds of one GPU, its share of them.

        >>> PriceConfig(prompt=2.0, completion=8.0).cost_usd(1_000, 500)
        0.006
        >>> PriceConfig(prompt=2.0, completion=8.0, cached_prompt=0.5).cost_usd(1_000, 500, cached_tokens=800)
        0.0048
        >>> PriceConfig(gpu_second=0.001).cost_usd(1_000, 500, gpu_s=2.0)
        0.002
        """
        if self.gpu_second is not None:
            return self.gpu_second * gpu_s
        assert self.prompt is not None
        assert self.completion is not None
        cached = self.prompt if self.cached_prompt is None else self.cached_prompt
        return (self.prompt * (prompt_tokens - cached_tokens) + cached * cached_tokens + self.completion * completion_tokens) / 1e6


class SpendCapConfig(Strict):
    """US dollars; None: no cap. A day and a month begin at midnight UTC."""

    day: float | None = Field(None, ge=0)
    month: float | None = Field(None, ge=0)


class SpendCapsConfig(Strict):
    """Who has spent as much is refused (429) until the day or the month is over; what is in flight then is still answered."""

    all: SpendCapConfig = Field(SpendCapConfig(), description="Of all requests together.")
    per_key: SpendCapConfig = Field(SpendCapConfig(), description="Of each API key that `keys` does not name.")
    keys: dict[Name, SpendCapConfig] = Field(default_factory=dict, description="Of API keys by their names, in place of `per_key`.")
