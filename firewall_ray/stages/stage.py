"""What all stages have in common: what one reads and writes, and how its output is decided about, begun, finished and told of.

Runs in the driver. A stage's module has a function that makes the output and ends in `STAGE`, which says what that function uses:
jobs, the pipeline and the paper's run know no more of a stage than this.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from firewall_ray.config.run import RunConfig
from firewall_ray.store.dataset import Action, Dataset
from firewall_ray.store.layout import ArtifactStore

# A line of a job's closing JSON: `stage`, `action` ("run", "resume", "skip"), `path`, and what it counted.
StageResult = dict[str, Any]

OF_A_MODEL = ("samples", "grades")  # these folders have a dataset for each model


@dataclass(frozen=True)
class Stage:
    """One arrow of the way of the data.

    verb: its module's and its job's name. run: `run(config, store, limit=, force=)` makes the output, and takes `retry_errors`
    where `retries`. reads, writes: folders under ROOT, see `leases.lease`.
    """

    verb: str
    run: Callable[..., StageResult | list[StageResult]]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    needs_ray: bool = False
    retries: bool = False

    def results(self, config: RunConfig, store: ArtifactStore, **options: Any) -> list[StageResult]:
        """`run`, a result for each dataset. `retry_errors` may be given to every stage; those without error rows pass it over."""
        if not self.retries:
            options.pop("retry_errors", None)
        results = self.run(config, store, **options)
        return results if isinstance(results, list) else [results]

    def of_models(self, models: Sequence[str] | None) -> "Stage":
        """The stage for these models alone, so that two jobs may sample two models at the same time. None: for all.

        >>> Stage("grade", print, reads=("queries", "samples"), writes=("grades",)).of_models(["weak"]).reads
        ('queries', 'samples/weak')
        """
        if not models:
            return self

        def narrowed(folders: tuple[str, ...]) -> tuple[str, ...]:
            # samples/weak, samples/strong: folders that conflict with no other model's.
            parts = ([f"{folder}/{model}" for model in models] if folder in OF_A_MODEL else [folder] for folder in folders)
            return tuple(part for each in parts for part in each)

        return replace(self, reads=narrowed(self.reads), writes=narrowed(self.writes))


@dataclass
class Output:
    """One dataset that a stage makes.

    stage: what it is called in results. said: stands in its result, such as the model that it is of.
    """

    stage: str
    dataset: Dataset
    settings: Mapping[str, Any]
    action: Action
    said: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def plan(
        cls,
        stage: str,
        dataset: Dataset,
        settings: Mapping[str, Any],
        # Positional, so that `said` may use any name.
        /,
        *,
        force: bool,
        resumes: bool = False,
        costly: bool = False,
        reusable: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = operator.eq,
        **said: Any,
    ) -> "Output":
        """Decides as `Dataset.plan` does. resumes: the stage goes on with the files of a killed run; else it begins again."""
        action = dataset.plan(settings, force=force, costly=costly, reusable=reusable)
        # A stage that cannot go on with a killed run's files must not keep them, or their rows would come twice.
        return cls(stage, dataset, settings, "run" if action == "resume" and not resumes else action, said)

    @property
    def is_wanted(self) -> bool:
        """Whether there is something to do."""
        return self.action != "skip"

    def begin(self) -> None:
        """From here on the dataset is unfinished; unless the stage resumes, what was there is gone."""
        self.dataset.begin(self.settings, keep_files=self.action == "resume")

    def finish(self, config: RunConfig, counts: Mapping[str, Any]) -> None:
        self.dataset.finish(config.model_dump(mode="json"), counts)

    def result(self) -> StageResult:
        """Of a finished dataset."""
        facts = {"action": self.action, "path": self.dataset.path, **self.said}
        return {"stage": self.stage, **facts, **self.dataset.manifest()["counts"]}


def make(config: RunConfig, output: Output, write: Callable[[], Mapping[str, Any]]) -> StageResult:
    """The output, made unless it is there.

    write: checks what it reads, calls `output.begin`, writes the rows, and returns counts for the manifest and the result. What is
    wrong with its inputs is found before the first file of an older output is deleted.
    """
    if output.is_wanted:
        output.finish(config, write())
    return output.result()


def action_of(outputs: Iterable[Output]) -> Action:
    """Of a stage that makes several datasets in one go.

    >>> action_of([])
    'skip'
    """
    actions = {output.action for output in outputs}
    return "resume" if "resume" in actions else "run" if "run" in actions else "skip"
