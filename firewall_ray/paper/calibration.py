"""ROOT/calibration/: which of the settings that the paper leaves open bring a model's pass rates closest to the paper's.

queries/ -> calibration/queries/ (few of each task's test split) -> samples and grades under calibration/<setting>/, by the
pipeline's own stages -> calibration.csv and calibration.json, the nearest setting first. Runs in the driver; what is finished is
skipped.
"""

import csv
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from firewall_ray.config.run import RunConfig
from firewall_ray.engines.prompt_choice import prompt_format
from firewall_ray.errors import ConfigError
from firewall_ray.paper.targets import Compared, compare, targets_of
from firewall_ray.schemas import GRADES, QUERIES, SAMPLES
from firewall_ray.stages import load_stage
from firewall_ray.stages.grade import run_grading
from firewall_ray.stages.report import without_nan
from firewall_ray.stages.sample import run_sampling
from firewall_ray.stages.stage import Output, StageResult, make
from firewall_ray.store.dataset import Dataset, storage_errors
from firewall_ray.store.layout import ArtifactStore

MADE_BY = "python jobs/paper.py --calibrate"


@dataclass(frozen=True)
class Setting:
    """keeps_space: the prompt's last character is kept. has_stop: stop strings as configured, else none. rule: GSM8K's."""

    temperature: float
    keeps_space: bool
    has_stop: bool
    num_samples: int
    rule: str

    @property
    def folder(self) -> str:
        """Of the samples, which the rule does not change.

        >>> Setting(0.7, True, False, 4, "final").folder
        't0.7-space-nostop-n4'
        """
        space, stop = "space" if self.keeps_space else "nospace", "stop" if self.has_stop else "nostop"
        return f"t{self.temperature:g}-{space}-{stop}-n{self.num_samples}"


@dataclass(frozen=True)
class Calibrated:
    """A setting, its pass rates, and how far they are: the mean absolute difference over the tasks, in [0, 1]."""

    setting: Setting
    compared: list[Compared]

    @property
    def distance(self) -> float:
        return float(np.mean([abs(row.difference) for row in self.compared]))


class CalibrationStore(ArtifactStore):
    """The queries of the calibration, and the samples and grades of one setting.

    >>> CalibrationStore("/tmp/run", Setting(1.0, False, True, 4, "strict")).grades("weak").path
    '/tmp/run/calibration/t1-nospace-stop-n4/gsm8k_strict/grades/weak'
    """

    def __init__(self, root: str, setting: Setting) -> None:
        super().__init__(root)
        self.setting = setting

    def queries(self) -> Dataset:
        return drawn_queries(self)

    def samples(self, model: str) -> Dataset:
        return self._dataset("samples", f"calibration/{self.setting.folder}/samples/{model}", SAMPLES, MADE_BY)

    def grades(self, model: str) -> Dataset:
        folder = f"calibration/{self.setting.folder}/gsm8k_{self.setting.rule}/grades/{model}"
        return self._dataset("grades", folder, GRADES, MADE_BY)


def drawn_queries(store: ArtifactStore) -> Dataset:
    return Dataset("queries", f"{store.base}/calibration/queries", store.filesystem, QUERIES, MADE_BY)


def run_calibration(
    config: RunConfig, store: ArtifactStore, *, num_queries: int | None = None
) -> tuple[list[Calibrated], list[StageResult]]:
    """Sample, grade and rank every setting of `paper.calibration`; the nearest comes first.

    num_queries: of each task, above the config's own. Raises ConfigError where the model has no targets, or its tasks no queries.
    """
    key = config.paper.calibration.model or config.pair.weak
    targets = targets_of(config).get(key)
    if targets is None:
        raise ConfigError(
            f"--calibrate: there are no pass rates to aim at for the model {key!r}: it is none of the paper's. Give them in "
            f"percent as paper.targets.{key}, such as {{triviaqa: 9.94}}, or name another model in paper.calibration.model."
        )
    # Whatever lies in queries/ stays: a run with --limit has fewer, another program's may be others, and they do here.
    is_whole = store.queries().state() not in ("missing", "unfinished")
    results = [] if is_whole else load_stage("prepare_queries").results(config, store)
    results.append(_draw_queries(config, store, set(targets), num_queries or config.paper.calibration.num_queries))
    drawn = drawn_queries(store).read(["task"])
    calibrated = []
    for setting in settings_of(config, key, has_gsm8k="gsm8k" in drawn["task"].unique().to_pylist()):
        changed, place = with_setting(config, key, setting), CalibrationStore(store.root, setting)
        # Skipped from the second rule on, which reads the same samples.
        results += run_sampling(changed, place, models=[key])
        # With a limit, samples of queries that an earlier and larger calibration drew are passed over.
        results += run_grading(changed, place, models=[key], limit=len(drawn))
        calibrated.append(Calibrated(setting, compare(place, key, targets)))
    calibrated.sort(key=lambda each: each.distance)
    _write(store, key, calibrated)
    return calibrated, results


def settings_of(config: RunConfig, key: str, *, has_gsm8k: bool) -> list[Setting]:
    """The grid, those with the same samples side by side."""
    grid = config.paper.calibration
    spaces, stops = grid.keep_trailing_space, grid.stop
    if prompt_format(key, config.models[key]).is_chat:
        # A chat ends where its template ends it, and its model itself: neither would change a sample.
        spaces, stops = spaces[:1], stops[:1]
    rules = grid.gsm8k_rules if has_gsm8k else [config.grading.gsm8k.rule]
    every = itertools.product(grid.temperatures, spaces, stops, [grid.num_samples], rules)
    return list(itertools.starmap(Setting, every))


def with_setting(config: RunConfig, key: str, setting: Setting) -> RunConfig:
    """The run's config with this setting in the place of its own."""
    # model_copy does not validate again; the parts were validated when the config was read.
    sampling: dict[str, Any] = {"temperature": setting.temperature, "num_samples": setting.num_samples}
    if not setting.has_stop:
        sampling["stop"] = []
    model = config.models[key].model_copy(update={"keep_trailing_space": setting.keeps_space})
    gsm8k = config.grading.gsm8k.model_copy(update={"rule": setting.rule})
    return config.model_copy(
        update={
            "sampling": config.sampling.model_copy(update=sampling),
            "models": {**config.models, key: model},
            "grading": config.grading.model_copy(update={"gsm8k": gsm8k}),
        }
    )


def _draw_queries(config: RunConfig, store: ArtifactStore, tasks: set[str], num_queries: int) -> StageResult:
    queries = store.queries().require()
    settings = {"queries": queries.identity(), "tasks": sorted(tasks), "num_queries": num_queries}
    output = Output.plan("calibration_queries", drawn_queries(store), settings, force=False)

    def write() -> dict[str, int]:
        every = queries.read()
        wanted = pc.and_(pc.equal(every["split"], "test"), pc.is_in(every["task"], pa.array(sorted(tasks))))
        # Ids are hashes of the questions, so the lowest are a random draw, and a larger draw holds a smaller one.
        rows = every.filter(wanted).sort_by("query_id")
        if not len(rows):
            raise ConfigError(
                f"--calibrate: {queries.path} has no test queries of {', '.join(sorted(tasks))}, which there are pass rates for. "
                "Name one of these tasks in queries.tasks, or others in paper.targets."
            )
        drawn = [rows.filter(pc.equal(rows["task"], task)).slice(0, num_queries) for task in sorted(tasks)]
        output.begin()
        with output.dataset.writer() as writer:
            writer.write_table(pa.concat_tables(drawn))
        return {"queries": sum(map(len, drawn))}

    return make(config, output, write)


# Writing -------------------------------------------------------------------------------------------------------------


def _write(store: ArtifactStore, key: str, calibrated: list[Calibrated]) -> None:
    """Beside the settings' folders, anew each time: it costs nothing."""
    rows = list(_rows(key, calibrated))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    full = without_nan({"model": key, "settings": [{**asdict(each), "distance": each.distance} for each in calibrated]})
    with storage_errors(f"write {store.root}/calibration"):
        for name, content in {"csv": text.getvalue(), "json": json.dumps(full, indent=2, allow_nan=False)}.items():
            with store.filesystem.open_output_stream(f"{store.base}/calibration/calibration.{name}") as stream:
                stream.write(content.encode())


def _rows(key: str, calibrated: list[Calibrated]) -> Iterator[dict[str, Any]]:
    """A line of calibration.csv each: rates as numbers in [0, 1]."""
    for rank, each in enumerate(calibrated, start=1):
        row: dict[str, Any] = {"rank": rank, "model": key, **asdict(each.setting), "distance": each.distance}
        for of_task in each.compared:
            numbers = {"measured": of_task.measured, "target": of_task.target, "standard_error": of_task.standard_error}
            row |= {f"{of_task.task}_{name}": number for name, number in numbers.items()}
        yield row
