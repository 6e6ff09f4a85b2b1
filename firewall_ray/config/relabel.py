"""The config's section `relabel`: how live queries come back as labels; see firewall_ray/relabel/."""

from pydantic import Field

from firewall_ray.config.base import Positive, ReplicasConfig, Strict
from firewall_ray.config.queries import SplitsConfig


class RelabelConfig(Strict):
    """For jobs/relabel.py. What it samples, it samples beside a running application, so it is modest by default."""

    num_samples: Positive | None = Field(
        None, description="n for both models. None: sampling.num_samples, which makes these labels as exact as the run's."
    )
    replicas: ReplicasConfig = Field(
        ReplicasConfig(),
        description="Engines, in place of the models' own `replicas`; the weak model is sampled first, then the strong one. One "
        "engine takes the least from an application that scales with its traffic.",
    )
    node_resource: str | None = Field(
        None,
        description="Custom resource of the nodes for its engines, in place of the models' own: one that the nodes which serve "
        "lack keeps engines off these. None: as the models say.",
    )
    # An eighth of the 32 that a run's own sampling may have (models.<key>.max_concurrency).
    max_concurrency: Positive = Field(
        4, description="Requests in flight to a model that is served elsewhere, where the application's requests share its limits."
    )
    splits: SplitsConfig = Field(
        SplitsConfig(),
        description="Of queries that no task of the run has a split for. Leave it from round to round: what was held out once "
        "then stays held out.",
    )
    warm_start: bool = Field(
        True,
        description="Train on from the router in service. False, or a ROOT that is no folder: from router.backbone.",
    )
    seed: int = Field(0, description="Draws the queries.")
