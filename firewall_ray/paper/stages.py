"""What the tables need, in order: the pipeline's own stages, and the same stages for other pairs and other backbones.

Runs in the driver. Every stage skips what is finished, so a run that was cut off, or a config that grew, goes on.
"""

from collections.abc import Callable

from firewall_ray.baselines.run import run_baselines
from firewall_ray.config.run import RunConfig
from firewall_ray.paper.bart_qualities import run_test_qualities
from firewall_ray.paper.variants import MARGIN_SAMPLING, OTHER_SPLITS, BackboneStore, PairStore, backbone_config, other_models
from firewall_ray.stages import PIPELINE, load_stage
from firewall_ray.stages.grade import run_grading
from firewall_ray.stages.label import run_labeling
from firewall_ray.stages.sample import run_sampling
from firewall_ray.stages.score import run_scoring
from firewall_ray.stages.stage import StageResult
from firewall_ray.stages.train_router import run_training
from firewall_ray.store.layout import ArtifactStore

Step = Callable[[RunConfig, ArtifactStore], list[StageResult]]


def steps() -> dict[str, Step]:
    """By name, in order: the pipeline's stages but for its report, those with other models and pairs for all of them."""
    own: dict[str, Step] = {"sample": sample, "grade": grade, "label": label}
    # The report is left out: artifact.py builds its own, of every pair and backbone.
    of_pipeline = {verb: own.get(verb, load_stage(verb).results) for verb in PIPELINE if verb != "report"}
    return {**of_pipeline, "backbones": backbones, "baselines": baselines}


def sample(config: RunConfig, store: ArtifactStore) -> list[StageResult]:
    """The pair side by side, then the other models one by one: together they might not fit on the GPUs.

    Of the others the test split alone: their pairs are evaluated and nothing is trained on them, so that the rest, most of a
    run's queries, would be sampled for nobody.
    """
    results = run_sampling(config, store)
    for key in other_models(config):
        results += run_sampling(config, store, models=[key], splits=OTHER_SPLITS)
    return results


def grade(config: RunConfig, store: ArtifactStore) -> list[StageResult]:
    return run_grading(config, store, models=[config.pair.weak, config.pair.strong, *other_models(config)])


def label(config: RunConfig, store: ArtifactStore) -> list[StageResult]:
    """The pair, and the test split of Table 2's pairs. They share grades, so the strong model is sampled once."""
    others = (run_labeling(*other, splits=OTHER_SPLITS) for other in _other_pairs(config, store))
    return [run_labeling(config, store), *others]


def baselines(config: RunConfig, store: ArtifactStore) -> list[StageResult]:
    """The config's, and figure 3's BARTScores; for other pairs Margin Sampling alone, which reads each weak model anew."""
    results = [*run_baselines(config, store), *run_test_qualities(config, store)]
    if MARGIN_SAMPLING in config.baselines.names:
        # The other baselines are trained, and Table 2 trains nothing again.
        alone = {"baselines": config.baselines.model_copy(update={"names": [MARGIN_SAMPLING]})}
        for of_pair, place in _other_pairs(config, store):
            results += run_baselines(of_pair.model_copy(update=alone), place)
    return results


def backbones(config: RunConfig, store: ArtifactStore) -> list[StageResult]:
    """Table 4: train and score the routers of every other backbone."""
    results = []
    for name in config.paper.backbones:
        changed, place = backbone_config(config, name), BackboneStore(store.root, name)
        # Routers of all backbones are called by their designs; the closing JSON must tell them apart.
        results += [{**run(changed, place), "backbone": name} for run in (run_training, run_scoring)]
    return results


def _other_pairs(config: RunConfig, store: ArtifactStore) -> list[tuple[RunConfig, PairStore]]:
    """Config and store as each of Table 2's pairs sees them."""
    return [(config.model_copy(update={"pair": pair}), PairStore(store.root, pair)) for pair in config.paper.pairs]
