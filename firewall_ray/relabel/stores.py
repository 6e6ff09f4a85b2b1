"""Where a round of relabelling lies: a ROOT of its own in relabel/<round>/ of the run's, and one router in the run's routers/.

Nothing of the run is overwritten. The stages take a store and so need not know of any of this.
"""

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from firewall_ray.config.base import Name
from firewall_ray.errors import ConfigError
from firewall_ray.schemas import JUDGEMENTS, LABELS, QUERIES
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

FOLDER = "relabel"
DRAWN = pa.schema([QUERIES.field(name) for name in ("query_id", "question", "prompt")])
# What messages tell the user to run: the stages' own jobs know nothing of rounds.
MADE_BY = "python jobs/relabel.py"


class RoundStore(ArtifactStore):
    """A round's own queries, samples, grades and labels, and the router that it trains.

    >>> store = RoundStore("/tmp/run", "may")
    >>> store.labels().path, store.router("soft_block").path
    ('/tmp/run/relabel/may/labels', '/tmp/run/routers/soft_block-may')
    """

    def __init__(self, root: str, name: str) -> None:
        super().__init__(root)
        self.name = name
        # With another base every dataset of the stages lies in the round's folder, without a word about it in the stages.
        self.run_base = self.base
        self.base = f"{self.run_base}/{FOLDER}/{name}"

    def judge_cache(self) -> Dataset:
        """The run's: what a judge was paid for once holds for every round."""
        return Dataset("judge_cache", f"{self.run_base}/judge_cache", self.filesystem, JUDGEMENTS, MADE_BY)

    def drawn(self) -> Dataset:
        """The queries of the decision log that this round is about."""
        return self._dataset("drawn queries", "drawn", DRAWN, MADE_BY)

    def folded(self) -> Dataset:
        """The run's labels, those of the rounds before and this round's."""
        return self._dataset("folded labels", "folded", LABELS, MADE_BY)

    def comparison(self) -> Dataset:
        """The new router against the one in service: JSON, Markdown, and Serve's config file where it won."""
        return self._dataset("comparison", "comparison", pa.schema([]), MADE_BY)

    def router(self, name: str) -> Dataset:
        """The router that this round trains on the design `name`, where an application of the run can load it."""
        return Dataset(
            "routers", f"{self.run_base}/routers/{router_name(name, self.name)}", self.filesystem, pa.schema([]), MADE_BY
        )


class FoldedStore(RoundStore):
    """The folded labels as labels, and the run's routers by their own names: what scores and the comparison are made of."""

    def labels(self) -> Dataset:
        return self.folded()

    def router(self, name: str) -> Dataset:
        return Dataset("routers", f"{self.run_base}/routers/{name}", self.filesystem, pa.schema([]), "python jobs/train_router.py")


def router_name(design: str, name: str) -> str:
    """What the router of round `name` is called, in routers/ and in Serve's `user_config`. Raises ConfigError."""
    try:
        # Twice: `name` is a folder too, and begins with what a design's prefix would hide, such as a dot.
        TypeAdapter(Name).validate_python(name)
        return TypeAdapter(Name).validate_python(f"{design}-{name}")
    except ValidationError as e:
        raise ConfigError(
            f"--name {name!r}: letters, digits, '.', '_' and '-', no more than {64 - len(design) - 1} of them, such as 2026-05-01."
        ) from e
