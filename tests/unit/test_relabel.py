"""A round of relabelling without engines: what is drawn, what can be graded, what is folded, and who wins."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from handmade import make_config, write
from hypothesis import given
from hypothesis import strategies as st
from ray.serve.schema import ServeDeploySchema
from tiny_router import make_card

from firewall_ray.artifacts import ArtifactStore
from firewall_ray.config import EvaluationConfig, RouterConfig, RunConfig
from firewall_ray.errors import ArtifactError, ArtifactMissing, ConfigError, TaskError
from firewall_ray.evaluation.inputs import LabelledQueries, RouterScores
from firewall_ray.relabel.comparison import compare, is_better, load_comparison, run_comparison
from firewall_ray.relabel.deployment import ServeFile
from firewall_ray.relabel.draw import draw, earlier_rounds, prompt_of, run_draw
from firewall_ray.relabel.fold import run_fold
from firewall_ray.relabel.references import run_references
from firewall_ray.relabel.run import at_low_priority, is_of_other_labels, run_relabel, training_config
from firewall_ray.relabel.stores import FoldedStore, RoundStore, router_name
from firewall_ray.router.card import CARD_FILE
from firewall_ray.schemas import LABEL_DESIGNS
from firewall_ray.tasks import get_task
from firewall_ray.tasks.base import PROMPT_TEMPLATE, prompt_id
from serve_app.deploy import SERVE_CONFIG, read_serve_config
from serve_app.router_deployment import RouterUserConfig

LOG = pa.schema([("query_id", pa.string()), ("text", pa.string())])


def chat(question: str) -> tuple[str, str]:
    """query_id and text of a logged chat."""
    return prompt_id(PROMPT_TEMPLATE.format(question=question)), question


def label(query_id: str, prompt: str, split: str = "train", weak: float = 0.0, strong: float = 1.0) -> dict[str, Any]:
    row = {"query_id": query_id, "task": "tiny_world", "split": split, "prompt": prompt, "num_samples": 4}
    row |= {"pass_rate_weak": weak, "pass_rate_strong": strong, "greedy_weak": weak == 1, "greedy_strong": strong == 1}
    return {**row, **dict.fromkeys(LABEL_DESIGNS, 1 - (1 - weak) * strong)}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return make_config(str(tmp_path), evaluation={"num_bootstrap": 200})


def log(store: ArtifactStore, *rows: tuple[str, str | None], name: str = "theirs.parquet") -> None:
    write(store.decisions(), [{"query_id": query_id, "text": text} for query_id, text in rows], name, LOG)


def drawn_questions(round_store: RoundStore) -> set[str]:
    return set(round_store.drawn().read()["question"].to_pylist())


def finish_labels(store: ArtifactStore, rows: list[dict[str, Any]], weak: str = "weak") -> None:
    labels = store.labels()
    labels.begin({"weak": weak, "strong": "strong"})
    write(labels, rows)
    labels.finish({}, {})


# The draw ------------------------------------------------------------------------------------------------------------


def test_a_query_is_drawn_once_however_often_it_was_asked_and_never_when_it_has_a_label(
    config: RunConfig, store: ArtifactStore
) -> None:
    prompt = PROMPT_TEMPLATE.format(question="Old?")
    write(store.labels(), [label("any id", prompt)])  # the run names a benchmark's query by task and question
    completion = "Translate: chat"
    log(store, chat("New?"), chat("New?"), chat("Old?"), (prompt_id(completion), completion), (prompt_id("x"), None), ("?", "Why?"))
    round_store = RoundStore(store.root, "may")
    result = run_draw(config, store, round_store)
    rows = {row["question"]: row["prompt"] for row in round_store.drawn().read().to_pylist()}
    assert rows == {"New?": "Question: New?\nAnswer: ", completion: completion}
    counts = {name: result[name] for name in ("rows", "without_text", "unreadable", "distinct", "labelled_before", "queries")}
    assert counts == {"rows": 6, "without_text": 1, "unreadable": 1, "distinct": 3, "labelled_before": 1, "queries": 2}


def test_a_text_whose_hash_is_not_the_id_has_no_prompt() -> None:
    assert prompt_of(*chat("Why?")) == "Question: Why?\nAnswer: "
    assert prompt_of(prompt_id("Why?"), "Why?") == "Why?"
    assert prompt_of("0123456789abcdef", "Why?") is None


@given(st.lists(st.integers(0, 30)), st.integers(0, 5), st.integers(1, 10), st.randoms())
def test_neither_order_nor_repeats_change_the_draw_and_a_larger_limit_only_adds(
    asked: list[int], seed: int, limit: int, shuffle: Any
) -> None:
    rows = [chat(str(number)) for number in asked]
    few, _ = draw(rows, set(), limit, seed)
    more, _ = draw(rows, set(), limit + 3, seed)
    assert few == more[:limit]
    everything, counts = draw(rows, set(), None, seed)
    assert more == everything[: limit + 3]
    assert len(everything) == counts["distinct"] == len(set(asked))
    shuffle.shuffle(rows)
    assert draw(rows + rows, set(), limit, seed)[0] == few


def test_every_query_has_the_same_chance_whatever_its_share_of_the_traffic() -> None:
    rows = [chat(str(number)) for number in range(6)] + [chat("0")] * 100
    drawn = Counter(query.question for seed in range(3_000) for query in draw(rows, set(), 2, seed)[0])
    assert drawn.total() == 6_000
    assert all(abs(count - 1_000) < 130 for count in drawn.values())  # 5 standard deviations of binomial(3000, 1/3)


def test_what_was_drawn_stays_drawn_while_the_log_grows(config: RunConfig, store: ArtifactStore) -> None:
    write(store.labels(), [label("q", "p")])
    log(store, *(chat(str(number)) for number in range(8)))
    round_store = RoundStore(store.root, "may")
    run_draw(config, store, round_store, limit=3)
    before = drawn_questions(round_store)
    log(store, *(chat(str(number)) for number in range(100)), name="later.parquet")
    assert run_draw(config, store, round_store, limit=3)["action"] == "skip"
    assert drawn_questions(round_store) == before
    assert run_draw(config, store, round_store, limit=3, force=True)["distinct"] == 100


def test_a_later_round_leaves_out_what_an_earlier_one_labelled_of_the_same_pair(config: RunConfig, store: ArtifactStore) -> None:
    write(store.labels(), [label("q", "p")])
    log(store, chat("A?"), chat("B?"), chat("C?"))
    finish_labels(RoundStore(store.root, "april"), [label("a", PROMPT_TEMPLATE.format(question="A?"))])
    finish_labels(RoundStore(store.root, "other"), [label("b", PROMPT_TEMPLATE.format(question="B?"))], weak="middle")
    unfinished = RoundStore(store.root, "unfinished").labels()
    unfinished.begin({})
    round_store = RoundStore(store.root, "may")
    assert run_draw(config, store, round_store)["earlier_rounds"] == ["april"]
    assert drawn_questions(round_store) == {"B?", "C?"}
    assert earlier_rounds(store, config.pair, but="april") == []


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (
            [(prompt_id("x"), None)],
            "of 1 rows 1 have no text, and 0 no text that fits their query_id. Set serving.decision_log.keep",
        ),
        ([chat("Old?")], "all of the 1 queries are labelled already"),
    ],
)
def test_a_log_with_nothing_to_draw_says_why(config: RunConfig, store: ArtifactStore, rows: Any, named: str) -> None:
    write(store.labels(), [label("q", PROMPT_TEMPLATE.format(question="Old?"))])
    log(store, *rows)
    with pytest.raises(ArtifactError, match=named):
        run_draw(config, store, RoundStore(store.root, "may"))
    assert RoundStore(store.root, "may").drawn().state() == "missing"


def test_without_a_log_the_message_names_it(config: RunConfig, store: ArtifactStore) -> None:
    with pytest.raises(ArtifactMissing, match="decisions: nothing at"):
        run_draw(config, store, RoundStore(store.root, "may"))


# References ----------------------------------------------------------------------------------------------------------


def round_of(config: RunConfig, store: ArtifactStore, *questions: str) -> RoundStore:
    write(store.labels(), [label("q", "p")])
    log(store, *(chat(question) for question in questions))
    round_store = RoundStore(store.root, "may")
    run_draw(config, store, round_store)
    return round_store


def references(tmp_path: Path, *rows: dict[str, Any]) -> str:
    path = tmp_path / "references.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def queries_of(round_store: RoundStore) -> dict[str, tuple[str, Any]]:
    return {row["question"]: (row["task"], json.loads(row["reference"])) for row in round_store.queries().read().to_pylist()}


def test_a_question_of_a_task_is_graded_by_it_and_keeps_its_split(config: RunConfig, store: ArtifactStore) -> None:
    assert config.queries.tasks is not None
    of_task = list(get_task("tiny_world").load(config.queries.tasks.options()["tiny_world"]))
    chosen = {split: next(query for query in of_task if query.split == split) for split in ("train", "validation", "test")}
    round_store = round_of(config, store, "Nobody knows?", *(query.question for query in chosen.values()))
    result = run_references(config, round_store)
    assert {name: result[name] for name in ("queries", "not_gradable", "train", "validation", "test")} == {
        "queries": 3,
        "not_gradable": 1,
        "train": 1,
        "validation": 1,
        "test": 1,
    }
    rows = {row["question"]: row for row in round_store.queries().require().read().to_pylist()}
    assert {rows[query.question]["split"]: rows[query.question]["reference"] for query in chosen.values()} == {
        split: query.reference for split, query in chosen.items()
    }
    assert all(row["query_id"] == prompt_id(row["prompt"]) for row in rows.values())


def test_a_users_reference_is_above_the_tasks_but_a_test_question_stays_one(
    config: RunConfig, store: ArtifactStore, tmp_path: Path
) -> None:
    assert config.queries.tasks is not None
    query = next(q for q in get_task("tiny_world").load(config.queries.tasks.options()["tiny_world"]) if q.split == "test")
    round_store = round_of(config, store, query.question)
    run_references(config, round_store, references=references(tmp_path, {"question": query.question, "reference": "mine"}))
    (row,) = round_store.queries().read().to_pylist()
    assert (row["split"], json.loads(row["reference"])) == ("test", {"answer": "mine"})


def test_references_name_a_query_by_id_prompt_or_question(config: RunConfig, store: ArtifactStore, tmp_path: Path) -> None:
    round_store = round_of(config, store, "A?", "B?", "C?", "D?")
    rows = [
        {"query_id": chat("A?")[0], "reference": "7"},
        {"prompt": "Question: B?\nAnswer: ", "reference": {"aliases": ["seven"]}, "task": "triviaqa"},
        {"question": "C?", "reference": '{"answer": "18"}', "task": "gsm8k"},
        {"question": "Never asked?", "reference": "8"},
    ]
    result = run_references(config, round_store, references=references(tmp_path, *rows))
    assert queries_of(round_store) == {
        "A?": ("tiny_world", {"answer": "7"}),
        "B?": ("triviaqa", {"aliases": ["seven"]}),
        "C?": ("gsm8k", {"answer": "18"}),
    }
    assert (result["queries"], result["not_gradable"]) == (3, 1)


def test_more_references_later_add_queries_and_the_same_ones_change_nothing(
    config: RunConfig, store: ArtifactStore, tmp_path: Path
) -> None:
    round_store = round_of(config, store, "A?", "B?")
    rows = [{"question": name, "reference": "7"} for name in ("A?", "B?")]
    run_references(config, round_store, references=references(tmp_path, rows[0]))
    assert run_references(config, round_store, references=references(tmp_path, rows[0]))["action"] == "skip"
    assert run_references(config, round_store, references=references(tmp_path, *rows))["action"] == "run"
    assert queries_of(round_store).keys() == {"A?", "B?"}


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"question": "A?"}], r"row 1: `reference` is missing"),
        ([{"question": "A?", "reference": ""}], r"row 1: `reference` is missing"),
        ([{"reference": "7"}], r"row 1: `question` must be a text"),
        ([{"query_id": 7, "reference": "7"}], r"row 1: `query_id` must be a text"),
        ([{"question": "A?", "reference": "7", "task": "gsm8"}], r"row 1: There is no task 'gsm8'; did you mean 'gsm8k'"),
        ([{"question": "A?", "reference": "7"}, {"question": "A?", "reference": "8"}], r"row 2: this query has another reference"),
        ([{"question": "A?", "reference": " ", "task": "support"}], r"row 1: `reference` must be a text"),
        ([], "has no rows"),
    ],
)
def test_a_wrong_reference_is_refused_with_its_row_and_nothing_is_written(
    store: ArtifactStore, tmp_path: Path, rows: list[dict[str, Any]], named: str
) -> None:
    (tmp_path / "support.jsonl").write_text('{"question": "S?", "answer": "yes"}')
    support = {"support": {"source": str(tmp_path / "support.jsonl")}}
    tasks = {"tiny_world": {"num_train": 2, "num_validation": 0, "num_test": 0}}
    rows = [{"task": "tiny_world", **row} for row in rows]
    config = make_config(store.root, queries={"tasks": {**tasks, "custom": support}})
    round_store = round_of(config, store, "A?")
    with pytest.raises(TaskError, match=named):
        run_references(config, round_store, references=references(tmp_path, *rows))
    assert round_store.queries().state() == "missing"


def test_without_a_task_column_the_config_must_have_a_single_task(store: ArtifactStore, tmp_path: Path) -> None:
    few = {"num_train": 2, "num_validation": 0, "num_test": 0}
    config = make_config(store.root, queries={"tasks": {"tiny_facts": few, "tiny_sums": few}})
    round_store = round_of(config, store, "A?")
    with pytest.raises(TaskError, match=r"row 1: `task` is missing, and the config has 2 tasks \(tiny_facts, tiny_sums\)"):
        run_references(config, round_store, references=references(tmp_path, {"question": "A?", "reference": "7"}))


def test_where_nothing_can_be_graded_the_message_says_where_the_texts_are(config: RunConfig, store: ArtifactStore) -> None:
    round_store = round_of(config, store, "Nobody knows?")
    with pytest.raises(TaskError, match=r"None of the 1 drawn queries has a reference.*relabel/may/drawn.*--references FILE"):
        run_references(config, round_store)


# The fold ------------------------------------------------------------------------------------------------------------


def test_labels_are_folded_in_order_and_the_first_of_a_query_counts(config: RunConfig, store: ArtifactStore) -> None:
    write(store.labels(), [label("a", "A", weak=0.25), label("b", "B")])
    finish_labels(RoundStore(store.root, "april"), [label("b", "B", weak=0.5), label("c", "C", weak=0.75)])
    log(store, chat("New?"))
    round_store = RoundStore(store.root, "may")
    run_draw(config, store, round_store)
    finish_labels(round_store, [label("c", "C"), label("d", "D", split="test")])
    # A round that came to its end meanwhile belongs to the next one: this one has drawn without it.
    finish_labels(RoundStore(store.root, "also"), [label("e", "E")])
    result = run_fold(config, store, round_store)
    found = {row["query_id"]: row["pass_rate_weak"] for row in round_store.folded().require().read().to_pylist()}
    assert found == {"a": 0.25, "b": 0.0, "c": 0.75, "d": 0.0}
    assert (result["labels"], result["run"], result["round april"], result["this_round"]) == (4, 2, 1, 1)
    assert run_fold(config, store, round_store)["action"] == "skip"
    assert store.labels().num_rows() == 2


# The comparison ------------------------------------------------------------------------------------------------------

# 20 queries that only the strong model solves, 20 that both do. Strong calls for the former first: PGR at f = 0, 0.1, ... is
# min(1, 2 f), whose trapezoid is 0.1 (0.2 + 0.4 + 0.6 + 0.8 + 5 + 0.5) = 0.75. The latter first: max(0, 2 f - 1), 0.25.
WEAK = np.repeat([0.0, 1.0], 20)
GOOD, BAD = WEAK.copy(), 1 - WEAK


def held_out(weak: Any = WEAK, strong: Any = None) -> LabelledQueries:
    ids = [f"q{row:02d}" for row in range(len(weak))]
    return LabelledQueries(ids, ids, np.array(["t"] * len(ids)), weak, np.ones(len(ids)) if strong is None else strong, {})


def scores(p_weak: Any) -> RouterScores:
    return RouterScores("any", np.asarray(p_weak, dtype=np.float64), frozenset({"t"}))


def test_a_router_that_ranks_right_is_better_than_one_that_ranks_wrong() -> None:
    found = compare(held_out(), scores(BAD), scores(GOOD), set(), EvaluationConfig())["all"]
    assert found["new"]["apgr"].value == pytest.approx(0.75)
    assert found["in_service"]["apgr"].value == pytest.approx(0.25)
    assert found["difference"]["apgr"].value == pytest.approx(0.5)
    assert is_better(found["difference"]["apgr"])


@pytest.mark.parametrize("new", [GOOD, BAD])
def test_an_equal_or_a_worse_router_is_not_better(new: Any) -> None:
    assert not is_better(compare(held_out(), scores(GOOD), scores(new), set(), EvaluationConfig())["all"]["difference"]["apgr"])


def test_a_gain_that_rests_on_two_queries_is_not_beyond_chance() -> None:
    """The routers differ in the order of two queries, and most resamples lack one of these: (1 - (39/40)^40)^2 = 0.4 have both."""
    almost = GOOD.copy()
    almost[[19, 20]] = 0.6, 0.4
    difference = compare(held_out(), scores(almost), scores(GOOD), set(), EvaluationConfig())["all"]["difference"]["apgr"]
    assert difference.value > 0
    assert not is_better(difference)


@pytest.mark.filterwarnings("ignore::firewall_ray.evaluation.metrics.UndefinedMetricWarning")
def test_where_the_strong_model_is_no_better_nothing_is_decided() -> None:
    found = compare(held_out(strong=WEAK), scores(BAD), scores(GOOD), set(), EvaluationConfig())["all"]["difference"]["apgr"]
    assert np.isnan(found.low)
    assert not is_better(found)


def test_live_queries_and_the_runs_own_are_also_compared_apart() -> None:
    queries = held_out()
    of_run = set(queries.query_ids[5:35])
    found = compare(queries, scores(BAD), scores(GOOD), of_run, EvaluationConfig(num_bootstrap=10))
    assert {part: each["num_queries"] for part, each in found.items()} == {
        "all": 40,
        "the run's test split": 30,
        "live, held out": 10,
    }
    assert found.keys() - compare(queries, scores(BAD), scores(GOOD), set(queries.query_ids), EvaluationConfig()).keys() == {
        "live, held out"
    }


def compared(config: RunConfig, store: ArtifactStore, in_service: Any, new: Any) -> FoldedStore:
    """A whole round whose scores are given; one query is live."""
    queries = held_out()
    rows = [label(i, p, "test", w) for i, p, w in zip(queries.query_ids, queries.prompts, WEAK, strict=True)]
    write(store.labels(), rows[1:])
    folded, round_store = FoldedStore(store.root, "may"), RoundStore(store.root, "may")
    for dataset, counts in (
        (folded.drawn(), {"queries": 5, "distinct": 9}),
        (folded.queries(), {"queries": 3, "not_gradable": 2}),
        (folded.folded(), {"labels": 40, "this_round": 1}),
    ):
        dataset.begin({})
        if dataset.kind == "folded labels":
            write(dataset, rows)
        dataset.finish({}, counts)
    for name, p_weak in (("soft_block", in_service), ("soft_block-may", new)):
        put_router(folded, name)
        write(folded.scores(name), [{"query_id": i, "p_weak": p} for i, p in zip(queries.query_ids, p_weak, strict=True)])
    assert round_store.router("soft_block").path == folded.router("soft_block-may").path
    result = run_comparison(config, store, folded, "soft_block-may", serve_file(config))
    assert result["winner"] == ("soft_block-may" if new is GOOD else "soft_block")
    return folded


def test_a_better_router_is_written_down_with_the_file_that_deploys_it(config: RunConfig, store: ArtifactStore) -> None:
    folded = compared(config, store, BAD, GOOD)
    found = load_comparison(folded)
    assert found["is_better"]
    assert found["held_out"]["all"]["difference"]["apgr"]["value"] == pytest.approx(0.5)
    text = folded.comparison().read_bytes("comparison.md").decode()
    assert "soft_block-may is better: +0.500 [" in text
    assert "| the run's test split | 39 |" in text
    assert "Of 9 distinct queries in the decision log 5 were drawn, 2 of which have no reference" in text
    deployable = yaml.safe_load(folded.comparison().read_bytes("serve_config.yaml"))
    assert user_config(deployable) == RouterUserConfig(
        router="soft_block-may", version="0123456789abcdef", strong_fraction=config.serving.strong_fraction
    )


def test_a_router_that_is_not_better_is_written_down_too_and_leaves_nothing_to_deploy(
    config: RunConfig, store: ArtifactStore
) -> None:
    folded = compared(config, store, GOOD, BAD)
    assert not load_comparison(folded)["is_better"]
    assert "soft_block stays: soft_block-may is worse, -0.500 [" in folded.comparison().read_bytes("comparison.md").decode()
    assert [Path(path).name for path in folded.comparison().files()] == ["comparison.json", "comparison.md"]


# What is deployed ----------------------------------------------------------------------------------------------------


def serve_file(config: RunConfig, **application: Any) -> ServeFile:
    """The shipped one, with changes to the application."""
    content = read_serve_config(SERVE_CONFIG)
    content["applications"][0] |= application
    return ServeFile(content, config)


def user_config(content: Any) -> RouterUserConfig:
    """Of a file that Serve takes."""
    ServeDeploySchema.model_validate(content)
    (application,) = content["applications"]
    (found,) = [each for each in application["deployments"] if each["name"] == "Router"]
    return RouterUserConfig.model_validate(found["user_config"])


def test_the_shipped_file_serves_the_configs_router_and_takes_another(config: RunConfig) -> None:
    shipped = serve_file(config)
    assert shipped.router == "soft_block"
    changed = yaml.safe_load(shipped.with_router("soft_block-may", "v2"))
    assert user_config(changed) == RouterUserConfig(router="soft_block-may", version="v2", strong_fraction=0.3)
    assert "deployments" in changed["applications"][0]
    del changed["applications"][0]["deployments"]
    assert changed == shipped.content


def test_a_fraction_in_force_and_other_deployments_stay(config: RunConfig) -> None:
    others = {"name": "Ingress", "num_replicas": 2}
    router = {"name": "Router", "num_replicas": 2, "user_config": {"router": "hard_block-april", "strong_fraction": 0.15}}
    before = serve_file(config, deployments=[others, router])
    assert before.router == "hard_block-april"
    changed = yaml.safe_load(before.with_router("hard_block-may", "v2"))
    assert changed["applications"][0]["deployments"] == [
        others,
        {**router, "user_config": {"router": "hard_block-may", "version": "v2", "strong_fraction": 0.15}},
    ]
    assert before.router == "hard_block-april"


# The round -----------------------------------------------------------------------------------------------------------


def test_sampling_takes_as_few_engines_and_requests_as_the_config_says(tmp_path: Path) -> None:
    replicas = {"min": 2, "max": 8}
    bought = {"engine": "openai", "base_url": "http://x/v1", "model": "m", "max_concurrency": 32, "replicas": replicas}
    models = {"weak": {"path": "-", "replicas": replicas}, "strong": bought, "middle": {"path": "-", "replicas": replicas}}
    config = at_low_priority(make_config(str(tmp_path), models=models, relabel={"num_samples": 3}))
    assert [config.models[key].replicas.max for key in ("weak", "strong", "middle")] == [1, 1, 8]
    assert config.models["strong"].max_concurrency == 4  # type: ignore[union-attr]
    assert config.sampling.num_samples == 3
    assert [config.models[key].node_resource for key in ("weak", "strong", "middle")] == [None, None, None]
    apart = make_config(str(tmp_path), models=models, relabel={"node_resource": "spare"})
    assert [at_low_priority(apart).models[key].node_resource for key in ("weak", "strong", "middle")] == ["spare", "spare", None]
    modest = {**bought, "max_concurrency": 2}
    assert at_low_priority(make_config(str(tmp_path), models={**models, "strong": modest})).models["strong"].max_concurrency == 2  # type: ignore[union-attr]


def test_training_goes_on_from_the_router_in_service_unless_told_otherwise(config: RunConfig, store: ArtifactStore) -> None:
    warm = training_config(config, store, "hard_block-april", "hard_block").router
    assert (warm.backbone.path, warm.designs) == (store.router("hard_block-april").path, ["hard_block"])
    cold = make_config(store.root, relabel={"warm_start": False})
    assert training_config(cold, store, "hard_block-april", "hard_block").router.backbone == cold.router.backbone


def test_a_router_of_labels_that_have_grown_since_is_trained_anew(store: ArtifactStore) -> None:
    labels, router = store.labels(), store.router("soft_block-may")
    finish_labels(store, [label("a", "A")])
    assert not is_of_other_labels(router, labels)  # there is none
    router.begin({"labels": labels.identity()})
    router.finish({}, {})
    assert not is_of_other_labels(router, labels)
    finish_labels(store, [label("a", "A"), label("b", "B")])
    assert is_of_other_labels(router, labels)


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 60, "may\n"])
def test_a_round_whose_name_is_no_folder_or_too_long_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        router_name("soft_block", name)


def put_router(store: ArtifactStore, name: str) -> None:
    router = store.router(name)
    router.begin({})
    router.write_bytes(CARD_FILE, make_card(RouterConfig()).model_dump_json().encode())
    router.finish({}, {})


@pytest.mark.parametrize(
    ("in_service", "fields", "named"),
    [
        ("soft_block-may", {}, "the router of the round may, is in service already"),
        ("bart", {"design": "hybrid_llm_det"}, "learnt 'hybrid_llm_det', which labels/ does not have"),
        ("soft_block", {"weak": {"key": "middle", "path": "x"}}, "the router soft_block is for middle and strong"),
    ],
)
def test_a_round_that_could_replace_nothing_is_refused_before_anything_is_drawn(
    config: RunConfig, store: ArtifactStore, in_service: str, fields: dict[str, Any], named: str
) -> None:
    put_router(store, in_service)
    deployments = [{"name": "Router", "user_config": {"router": in_service, "strong_fraction": 0.3}}]
    card = json.loads(store.router(in_service).read_bytes(CARD_FILE))
    store.router(in_service).write_bytes(CARD_FILE, json.dumps({**card, **fields}).encode())
    log(store, chat("A?"))
    write(store.labels(), [label("q", "p")])
    with pytest.raises(ConfigError, match=named):
        next(iter(run_relabel(config, store, "may", serve_file(config, deployments=deployments))))
    assert store.children("relabel") == []
