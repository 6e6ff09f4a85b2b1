"""The config's section `queries`: the benchmarks of the run, a user's own tasks, or outcomes that exist already."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from firewall_ray.config.base import Name, Positive, Strict
from firewall_ray.config.evaluate_module import NO_PROGRAMS, EvaluateGraderOptions, runs_programs
from firewall_ray.config.judge import JudgeConfig

# Benchmarks ----------------------------------------------------------------------------------------------------------


class TinyWorldOptions(Strict):
    """The shipped synthetic task; see firewall_ray/tasks/tiny_world.py."""

    seed: int = Field(0, description="Draws the questions. Another seed is another sample of the same world.")
    num_train: int = Field(1_500, ge=0, description="Training queries. Below 1,000 the routers get noisy.")
    num_validation: int = Field(300, ge=0, description="Queries that choose the best epoch and calibrate thresholds.")
    num_test: int = Field(600, ge=0, description="Queries of the report. The interval shrinks with the square root.")


class Gsm8kOptions(Strict):
    """GSM8K (Cobbe et al. 2021)."""

    source: str = Field(
        "openai/gsm8k",
        description="A data set id for the `datasets` library, or a folder with train.jsonl and test.jsonl (.gz too) of "
        "`question` and `answer`.",
    )
    num_validation: int = Field(500, ge=0, description="Queries carved from the end of the seeded shuffle of train.")
    num_train: int | None = Field(None, ge=0, description="At most so many training queries. None: all.")
    num_test: int | None = Field(None, ge=0, description="At most so many test queries, drawn by the seed. None: all 1,319.")
    seed: int = Field(0, description="Shuffles train before validation is carved from it, and draws `num_test`.")


class TriviaqaOptions(Strict):
    """TriviaQA (Joshi et al. 2017), closed book."""

    source: str = Field(
        "mandarjoshi/trivia_qa",
        description="A data set id for the `datasets` library (its rc.nocontext), or a folder with train.jsonl and "
        "validation.jsonl (.gz too) of `question` and `answer`, or of `question` and `aliases`. A single file is test alone.",
    )
    num_validation: int = Field(500, ge=0, description="Queries carved from the end of the seeded shuffle of train.")
    num_train: int | None = Field(None, ge=0, description="At most so many training queries. None: all.")
    num_test: int | None = Field(None, ge=0, description="At most so many test queries, drawn by the seed. None: all.")
    seed: int = Field(0, description="Shuffles train before validation is carved from it, and draws `num_test`.")


class HumanevalOptions(Strict):
    """HumanEval (Chen et al. 2021): test only, out of domain."""

    source: str = Field(
        "openai/openai_humaneval",
        description="A data set id for the `datasets` library, or a folder with test.jsonl or HumanEval.jsonl (.gz too) of "
        "`prompt`, `test` and `entry_point`.",
    )
    num_test: int | None = Field(None, ge=0, description="At most so many problems, drawn by the seed. None: all 164.")
    seed: int = Field(0, description="Draws `num_test`.")


class SandboxConfig(Strict):
    """Generated programs are executed, each confined to a process of its own; see firewall_ray/sandbox/."""

    isolation: Literal["required", "unsafe"] = Field(
        "required",
        description="required: a node that cannot hide files, network and processes from a program refuses to run it. "
        "unsafe: run it all the same, under resource limits alone; only for completions that you trust.",
    )
    timeout_s: float = Field(3.0, gt=0, le=3600, description="Wall time of a program, the official checker's 3 s.")
    memory_mib: int = Field(1_024, ge=256, description="Of a program. A node runs as many at once as Ray counts CPUs there.")
    scratch_mib: int = Field(64, ge=1, description="All files that a program writes.")


# A user's own --------------------------------------------------------------------------------------------------------


class SplitsConfig(Strict):
    """Splits that a seeded hash of the question draws, so that a question keeps its split whatever comes to the file."""

    test: float = Field(0.2, ge=0, le=1, description="Share of the questions that the report is made on.")
    validation: float = Field(0.1, ge=0, le=1, description="Share of the rest, which chooses the epoch and calibrates thresholds.")
    folds: int | None = Field(
        None, ge=2, description="k: cross-validation, with `fold` as test in place of `test`. One run, and one root, a fold."
    )
    fold: int = Field(0, ge=0, description="Which of the k folds is test, from 0.")
    seed: int = Field(0, description="Draws the splits. All folds of a cross-validation need the same.")

    @model_validator(mode="after")
    def _fold_exists(self) -> "SplitsConfig":
        # Without folds only 0, which then means nothing.
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold is {self.fold}, but folds is {self.folds}: fold goes from 0 to folds - 1")
        return self


class CustomTaskOptions(Strict):
    """Questions with references, and a grader; see docs/your_own_task.md."""

    source: str = Field(
        description="A file (.jsonl, .csv, .parquet; .jsonl.gz, .csv.gz), or a folder that has one for each of train, validation "
        "and test, or for some of them."
    )
    question: str = Field("question", description="The field with the question; the prompt is made of it.")
    answer: str | None = Field(
        "answer",
        description="The field with the reference, as the grader wants it. null: there is none, which a judge alone allows.",
    )
    splits: SplitsConfig = Field(SplitsConfig(), description="How to split a single file. A folder's files are the splits.")
    grader: str = Field(
        "exact",
        description="exact, numeric, regex, code, judge, evaluate:<module> or package.module:function; see "
        "firewall_ray/tasks/graders.py.",
    )
    evaluate: EvaluateGraderOptions | None = Field(None, description="For the grader evaluate:<module>. None: its defaults.")
    judge: JudgeConfig | None = Field(None, description="For the grader judge: the model that it asks.")
    sandbox: SandboxConfig = Field(SandboxConfig(), description="For the grader code.")
    max_tokens: Positive = Field(256, description="Of a completion. Generous for the longest right answer, no more.")
    stop: list[str] = Field(["\nQuestion:"], description="Stop strings: what a base model writes after its answer.")

    @field_validator("grader")
    @classmethod
    def _grader_is_named(cls, value: str) -> str:
        # Only its form is checked: the module need not be importable where the config is read. [^\W\d]\w* is an identifier.
        if value not in GRADERS and not re.fullmatch(rf"{EVALUATE}\S.*|[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
            raise ValueError(
                f"must be one of {', '.join(GRADERS)}, or a Python function as package.module:function, or a module of Hugging "
                "Face's evaluate as evaluate:NAME"
            )
        return value

    @model_validator(mode="after")
    def _evaluate_is_asked_for(self) -> "CustomTaskOptions":
        if not self.grader.startswith(EVALUATE):
            if self.evaluate is not None:
                raise ValueError(f"`evaluate` is for `grader: evaluate:<module>`, but grader is {self.grader!r}")
        elif runs_programs(self.grader.removeprefix(EVALUATE)) and self.sandbox.isolation != "unsafe":
            raise ValueError(
                f"{NO_PROGRAMS}; take that. Only for completions that you trust: sandbox: {{isolation: unsafe}} here, and "
                "HF_ALLOW_CODE_EVAL=1 in the environment of the workers"
            )
        return self

    @model_validator(mode="after")
    def _judge_is_for_the_grader_judge(self) -> "CustomTaskOptions":
        if (self.grader == "judge") != (self.judge is not None):
            raise ValueError("grader: judge and the section `judge` need each other: write both, or neither")
        if self.answer is None and self.judge is None:
            raise ValueError(
                f"answer is null, but the grader {self.grader} needs a reference; name its field, or use grader: judge"
            )
        return self


# Their names alone, since config imports nothing of tasks/; a test keeps them those of tasks/graders.py.
GRADERS = ("exact", "numeric", "regex", "code", "judge")
EVALUATE = "evaluate:"  # what the name of a module of Hugging Face's `evaluate` follows in `grader`


class TasksConfig(Strict):
    """The benchmarks of the run. A task that is not named is off."""

    tiny_world: TinyWorldOptions | None = None
    tiny_facts: TinyWorldOptions | None = Field(None, description="tiny_world's parts; see firewall_ray/tasks/tiny_parts.py.")
    tiny_sums: TinyWorldOptions | None = None
    tiny_letters: TinyWorldOptions | None = None
    gsm8k: Gsm8kOptions | None = None
    triviaqa: TriviaqaOptions | None = None
    humaneval: HumanevalOptions | None = None
    custom: dict[Name, CustomTaskOptions] = Field({}, description="Tasks of your own, by the name that they get.")

    @model_validator(mode="after")
    def _at_least_one(self) -> "TasksConfig":
        if not self.options():
            raise ValueError(f"no task is named; there are {sorted(type(self).model_fields)}")
        taken = sorted(self.custom.keys() & type(self).model_fields.keys())
        if taken:
            raise ValueError(f"custom.{taken[0]}: {taken[0]} is a task of this package; choose another name")
        return self

    def options(self) -> dict[str, dict[str, Any]]:
        """Options of every task that is on, by its name, as plain values."""
        dumped = self.model_dump(mode="json", exclude={"custom"}, exclude_none=False)
        if self.humaneval is not None and self.humaneval.num_test is None:
            # It draws nothing then; and queries that were made before there was a seed stay what they are.
            del dumped["humaneval"]["seed"]
        # Beside the package's in one mapping: names differ, which the validator above saw to.
        # Without the judge: another one makes other grades, and the same queries.
        own = {name: options.model_dump(mode="json", exclude={"judge"}) for name, options in self.custom.items()}
        return {**{name: options for name, options in dumped.items() if options is not None}, **own}


# Outcomes ------------------------------------------------------------------------------------------------------------


class OutcomeColumns(Strict):
    """What the file calls its columns. The optional ones are read where they are there; null: never, whatever is there."""

    query: str = Field("query", description="The question as a text: what the router reads, in the paper's prompt.")
    model: str = Field("model", description="Which model answered.")
    correct: str = Field("correct", description="The verdict: true or false, 1 or 0; or a pass rate, see `num_samples`.")
    verdicts: str | None = Field(
        None,
        description="Instead of `model`, where a row is a query: the column that maps each model to its verdict, or to an object "
        "with the verdict in its field `correct`.",
    )
    num_samples: str | None = Field("num_samples", description="Of how many samples `correct` is the pass rate.")
    sample_index: str | None = Field("sample_index", description="Number of the sample; the same one twice is refused.")
    query_id: str | None = Field("query_id", description="The file's own id; tells a question asked twice from a row given twice.")
    greedy: str | None = Field("greedy", description="True for an answer at temperature 0, which is then no sample.")
    task: str | None = Field("task", description="The benchmark of the query, for the report.")
    split: str | None = Field("split", description="train, validation or test. Without it, `splits` draws them.")

    @model_validator(mode="after")
    def _one_form(self) -> "OutcomeColumns":
        if self.verdicts is not None and "model" in self.model_fields_set:
            raise ValueError("`model` is for files with a row an answer, `verdicts` for those with a row a query; keep one")
        return self


class OutcomesConfig(Strict):
    """Outcomes that exist already: one row an answer of a model to a query, or one row a query with the verdicts of all models."""

    path: str = Field(description="A file: .csv, .jsonl (.gz too) or .parquet.")
    columns: OutcomeColumns = OutcomeColumns()
    models: dict[Name, str | Annotated[list[str], Field(min_length=1)]] | None = Field(
        None,
        description="What the file calls each model: {weak: mistral-7b}. A list: several models whose answers are the samples of "
        "one, such as a family. None: as the keys of `models`. Others are left out.",
    )
    threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="For graded scores, such as F1: right from this score on. None: what is neither a verdict nor a pass rate of "
        "`num_samples` is refused.",
    )
    task: Name = Field("outcomes", description="The task of queries, where no column says it.")
    splits: SplitsConfig = SplitsConfig()


class QueriesConfig(Strict):
    tasks: TasksConfig | None = Field(None, description="Where queries come from; `outcomes` in its place brings its own.")
    outcomes: OutcomesConfig | None = Field(None, description="For jobs/import_outcomes.py; then nothing is sampled or graded.")

    @model_validator(mode="after")
    def _one_of_both(self) -> "QueriesConfig":
        if (self.tasks is None) == (self.outcomes is None):
            raise ValueError("name either `tasks` (to be sampled and graded) or `outcomes` (graded already)")
        return self

    def custom_tasks(self) -> dict[str, CustomTaskOptions]:
        return {} if self.tasks is None else dict(self.tasks.custom)
