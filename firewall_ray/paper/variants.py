"""Config and ROOT as another pair, or another backbone, sees them: the same queries and grades, labels or routers of its own.

Runs in the driver and, with the routers, on workers. Stages take a store and so need not know of any of this.
"""

from firewall_ray.config.base import PairConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.schemas import LABELS, SCORES
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

MARGIN_SAMPLING = "margin_sampling"  # the one baseline that Table 2 scores anew for each pair
OTHER_SPLITS = ("test",)  # what Table 2's other pairs are sampled and labelled on


class PairStore(ArtifactStore):
    """The labels of another pair, in `pairs/<weak>-<strong>/labels/`, and scores that depend on it, in `pairs/../scores/`.

    >>> PairStore("/tmp/run", PairConfig(weak="weak", strong="middle")).labels().path
    '/tmp/run/pairs/weak-middle/labels'
    """

    def __init__(self, root: str, pair: PairConfig) -> None:
        super().__init__(root)
        # Queries, samples and grades stay the run's: the same ROOT. A model that is in two pairs is sampled and graded once.
        self.name = pair_name(pair)

    def labels(self) -> Dataset:
        return self._dataset("labels", f"pairs/{self.name}/labels", LABELS, "python jobs/paper.py")

    def scores(self, router: str) -> Dataset:
        return self._dataset("scores", f"pairs/{self.name}/scores/{router}", SCORES, "python jobs/paper.py")


class BackboneStore(ArtifactStore):
    """Routers of another backbone, and their scores, in `backbones/<name>/routers/` and `backbones/<name>/scores/`.

    >>> BackboneStore("/tmp/run", "llama").scores("soft_block").path
    '/tmp/run/backbones/llama/scores/soft_block'
    """

    def __init__(self, root: str, name: str) -> None:
        super().__init__(root)
        self.name = name

    def router(self, name: str) -> Dataset:
        router = super().router(name)
        return self._dataset("routers", f"backbones/{self.name}/routers/{name}", router.schema, "python jobs/paper.py")

    def scores(self, router: str) -> Dataset:
        return self._dataset("scores", f"backbones/{self.name}/scores/{router}", SCORES, "python jobs/paper.py")


def pair_name(pair: PairConfig) -> str:
    return f"{pair.weak}-{pair.strong}"


def other_models(config: RunConfig) -> list[str]:
    """Models of Table 2's pairs that are not in the pair itself, in the config's order."""
    wanted = {key for pair in config.paper.pairs for key in (pair.weak, pair.strong)}
    # In an order that does not change from process to process, as a set's does.
    return [key for key in config.models if key in wanted - {config.pair.weak, config.pair.strong}]


def backbone_config(config: RunConfig, name: str) -> RunConfig:
    """The run's config with another backbone under its routers."""
    # model_copy does not validate again; the parts were validated when the config was read.
    changes = {**config.paper.backbones[name].changes(), "designs": config.paper.backbone_designs}
    return config.model_copy(update={"router": config.router.model_copy(update=changes)})
