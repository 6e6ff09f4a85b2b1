"""The `serving` section of the run's configuration: how requests are routed, limited, watched and recorded."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from firewall_ray.config.base import HIDDEN, LabelDesign, NodeGroupConfig, Positive, ReplicasConfig, Strict
from firewall_ray.config.callers import Alias, ApiKeyConfig, check_same_rights
from firewall_ray.config.money import PriceConfig, SpendCapsConfig

Route = Literal["weak", "strong"]


class BudgetControlConfig(Strict):
    """Holds the realised strong fraction of live traffic at the target when traffic differs from the calibration set."""

    window: int = Field(
        1_000,
        # MIN_WINDOW of serve_app/routing/budget.py: 2 points of 200 are four decisions.
        ge=200,
        description="Decisions in a row, of one router replica, over which the fraction is within 2 points of the target. Shorter "
        "follows faster; longer keeps closer to the router's ranking.",
    )


class DecisionLogConfig(Strict):
    """One row a routed request under ROOT/decisions/, with the columns that the offline jobs read as scores."""

    keep_text: bool = Field(
        False,
        description="Write what the router read beside its hash, and show on the page how it begins: to the holder of the key that "
        "asked, without keys to everybody. Prompts are personal data.",
    )
    rows_per_file: Positive = Field(10_000, description="A file is finished after so many rows,")
    seconds_per_file: float = Field(60, gt=0, description="or after this long. A killed replica loses at most that much.")


class ServingConfig(NodeGroupConfig):
    """The serving application; the router runs on the device and CPUs of `scoring`, the models as `models` says."""

    # Routing
    router: LabelDesign | None = Field(None, description="The design whose router decides. None: the first of router.designs.")
    other_models: Literal["refuse", "warn"] = Field(
        "refuse",
        description="Where the pair is not what the router's card says it was trained for: another model or revision, or the same "
        "one asked otherwise. warn: for one that you know to be the same under another name; else scores speak of other models.",
    )
    strong_fraction: float = Field(
        0.3, ge=0, le=1, description="Share of the traffic for the model `firewall` that goes strong: what your budget allows."
    )
    chat_text: Literal["last_user", "conversation"] = Field(
        "last_user",
        description="What the router reads of a chat. last_user: the last user text in the template it was trained with; "
        "conversation: all texts, for a router trained on such.",
    )
    sticky: bool = Field(
        False, description="A conversation keeps the model of its first turn, and with it the model's KV cache of what was said."
    )
    shadow: Route | None = Field(None, description="All traffic for the router goes to this model; decisions are only recorded.")
    budget_control: BudgetControlConfig | None = Field(None, description="None: thresholds stay as calibrated.")

    # When things break
    fail_open: Route = Field(
        "weak", description="Who answers when the router cannot. A strong model sized for its share could not take all traffic."
    )
    router_timeout_s: float = Field(
        0.5,
        gt=0,
        description="The router's time to decide, from when it is asked; later, the request takes fail_open. Under load a request "
        "waits for its turn up to four times as long before.",
    )
    fallback: bool = Field(True, description="The other model answers when the chosen one is dead, overloaded or too slow.")
    stand_in_share: float = Field(
        1,
        ge=0,
        le=1,
        description="Of the last 1,000 requests for the router, on each ingress replica, those at most that the strong model "
        "answers in the weak one's place; beyond it they are a 503. With budget_control, the budget has to have room besides.",
    )
    first_token_timeout_s: float = Field(60, gt=0, description="A stream's time to its first byte.")
    answer_timeout_s: float = Field(600, gt=0, description="The time to a whole answer, of a request that does not stream.")
    token_timeout_s: float = Field(60, gt=0, description="A stream's longest silence after its first byte.")
    stream_timeout_s: float = Field(3_600, gt=0, description="A stream's whole time from its first byte to its last.")
    engine_stall_s: float = Field(
        120,
        gt=0,
        description="An engine of ours that says nothing to anybody for so long, while somebody waits, hangs: whoever waits is "
        "answered by the other model, and its replica is replaced. Longer than it reads your longest prompt.",
    )

    # Limits
    max_in_flight: Positive = Field(256, description="Requests that an ingress replica works on; more are refused with a 429.")
    max_in_flight_per_key: Positive = Field(64, description="For one API key, over all ingress replicas.")
    max_answers: int = Field(
        256,
        ge=1,
        le=1_024,  # vLLM's VLLM_MAX_COMPLETION_PROMPTS: of more prompts it takes none
        description="Answers that one request may ask for, its prompts times `n`; more are refused with a 400.",
    )
    max_tokens: Positive = Field(2**20, description="Tokens that one request may ask for, answers times `max_tokens`; else a 400.")
    max_tokens_in_flight: Positive = Field(
        2**23,
        description="Tokens that the requests of an ingress replica may come to together, 1,024 an answer where one does not say; "
        "beyond it they are refused with a 429.",
    )
    max_tokens_in_flight_per_key: Positive = Field(2**21, description="Of these, for one API key.")
    max_body_mib: float = Field(16, gt=0, le=1_024, description="Larger bodies are refused with a 413. Images in a chat are large.")
    body_timeout_s: float = Field(60, gt=0, description="A body's time to arrive; it holds a place in flight meanwhile.")
    api_keys: Annotated[Annotated[list[ApiKeyConfig], Field(min_length=1)] | Literal["disabled"] | None, HIDDEN] = Field(
        None,
        description="Who may call. `disabled` lets in whoever reaches the port, and must be said in words: None does not serve.",
    )
    aliases: dict[Alias, str] = Field(
        default_factory=dict,
        description="Names that clients may ask for beside those there are, such as {gpt-4o: firewall, gpt-4o-mini: firewall-0.1}.",
    )
    allowed_hosts: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="Names by which clients may ask, beside localhost and addresses. None: any with api_keys; without, "
        "none, since a page elsewhere could have its name resolve here and read the answers. ['*']: any.",
    )

    # Size
    ingress_replicas: ReplicasConfig = Field(ReplicasConfig(), description="Each takes a few hundred requests/s of one CPU.")
    router_replicas: ReplicasConfig = ReplicasConfig()
    max_surge_percent: int = Field(
        0,
        ge=0,
        le=100,
        description="Of a model's replicas, how many more may run while new ones replace them, rounded up: an upgrade then stops "
        "none before another is there. It needs that much room, GPUs where it runs on GPUs, and waits for it. 0: those that stop "
        "make the room, and where there is but one, the other model or a 503 answers meanwhile. Ingress, and a router on CPUs, "
        "always start before they stop.",
    )
    node_resource: str | None = Field(
        None,
        description="Custom resource of the nodes that may serve, such as `on_demand` in ray_cluster.yaml, which spot nodes lack. "
        "Every replica takes a thousandth of it. None: any node.",
    )

    # The page at /
    examples: dict[str, str] = Field(default_factory=dict, description="Questions to click, by what they show.")

    # What is recorded
    decision_log: DecisionLogConfig | None = Field(None, description="None: nothing is written.")

    # Money
    prices: dict[Route, PriceConfig] = Field(
        default_factory=dict, description="Of both models. Empty: nothing is priced, and strong calls avoided are only counted."
    )
    spend_caps: SpendCapsConfig | None = Field(None, description="None: whoever may call may spend. Needs prices.")

    @property
    def longest_answer_s(self) -> float:
        """Of one model, from when it is asked to its last byte."""
        return max(self.answer_timeout_s, self.first_token_timeout_s + self.stream_timeout_s)

    @property
    def longest_request_s(self) -> float:
        """Its body, a batch's decision, a model that gives no answer in time, and then the other's."""
        no_answer_s = max(self.answer_timeout_s, self.first_token_timeout_s)
        return self.body_timeout_s + self.answer_timeout_s + no_answer_s + self.longest_answer_s

    @property
    def keys(self) -> list[ApiKeyConfig]:
        """The API keys that there are; none where they are disabled, too."""
        return self.api_keys if isinstance(self.api_keys, list) else []

    @model_validator(mode="after")
    def _keys_of_a_name_have_its_rights(self) -> "ServingConfig":
        check_same_rights(self.keys)
        return self

    @model_validator(mode="after")
    def _prices_of_both_or_none(self) -> "ServingConfig":
        if len(self.prices) == 1:
            (priced,) = self.prices
            raise ValueError(f"prices: only the {priced} model has one; a saving needs both. Give both, or leave prices out.")
        return self

    @model_validator(mode="after")
    def _caps_can_be_held(self) -> "ServingConfig":
        caps = self.spend_caps
        if caps is None:
            return self
        if not self.prices:
            raise ValueError("spend_caps: without prices nobody knows what is spent. Set prices too.")
        names = {key.name for key in self.keys}
        if unknown := sorted(caps.keys.keys() - names):
            raise ValueError(
                f"spend_caps.keys: no API key has the name {unknown[0]}. There are: {', '.join(sorted(names)) or 'none'}."
            )
        if not names and (caps.per_key.day, caps.per_key.month) != (None, None):
            raise ValueError("spend_caps.per_key: there are no API keys (api_keys). Set spend_caps.all, or make keys.")
        return self
