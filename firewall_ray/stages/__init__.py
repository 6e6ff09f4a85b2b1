"""The way of the data: a stage a module, named by its verb, as its job is.

`PIPELINE` is the one list of what a run goes through. A module is loaded where its stage is asked for: those that sample and train
take seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firewall_ray.stages.stage import Stage

PIPELINE = ("prepare_queries", "sample", "grade", "extend_truncated", "label", "train_router", "score", "report")


def load_stage(verb: str) -> "Stage":
    """Any stage by its verb, of the pipeline or not.

    >>> load_stage("label").reads
    ('queries', 'grades')
    """
    stage: Stage = import_module(f"{__name__}.{verb}").STAGE
    return stage
