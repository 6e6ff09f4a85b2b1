"""Grading by a judge on a real local Ray: a scripted judge behind a real port."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from handmade import make_config, sample, write
from judge_server import Body, JudgeServer, exact, listening, texts_of, verdict

from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactMissing, ConfigError, EngineDied, TaskError
from firewall_ray.stages.grade import run_grading
from firewall_ray.stages.judge_facts import judge_facts
from firewall_ray.stages.prepare_queries import read_queries, run_prepare_queries
from firewall_ray.store.layout import ArtifactStore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
SECRET = "sk-proj-ABC0123456789abcdefXYZ"
NUM = 12


@pytest.fixture
def server() -> JudgeServer:
    return JudgeServer()


@pytest.fixture
def url(server: JudgeServer) -> Iterator[str]:
    with listening(server) as url:
        yield url


def prepared(root: Path, url: str, **judge: Any) -> tuple[RunConfig, ArtifactStore]:
    """Twelve questions without references; the weak model answers yes and no, the strong one yes and its greedy answer yes."""
    (root / "own.jsonl").write_text("".join(json.dumps({"question": f"Is {i} a number?"}) + "\n" for i in range(NUM)))
    own = {"source": str(root / "own.jsonl"), "answer": None, "grader": "judge", "judge": {"base_url": url, "model": "j", **judge}}
    config = make_config(str(root / "root"), queries={"tasks": {"custom": {"own": own}}}, grading={"batch_size": 5})
    store = ArtifactStore(config.root)
    run_prepare_queries(config, store)
    queries = read_queries(store).read().to_pylist()
    assert all(json.loads(query["reference"]) == {"answer": None} for query in queries)
    for model, texts, greedy in (("weak", ["yes", "no", "yes"], "no"), ("strong", ["yes", "yes", "yes"], "yes")):
        if store.samples(model).state() == "missing":
            write(store.samples(model), [sample(query["query_id"], texts, greedy, task="own") for query in queries])
    return config, store


def rows_of(store: ArtifactStore, model: str) -> list[tuple[Any, Any, Any]]:
    return [(row["correct"], row["greedy_correct"], row["error"]) for row in store.grades(model).read().to_pylist()]


def test_questions_without_references_are_graded_and_a_second_run_makes_no_call(
    tmp_path: Path, server: JudgeServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    labelled = tmp_path / "labelled.csv"
    labelled.write_text("question,answer,correct\nIs it?,yes,true\nIs it?,no,false\nIs it?,YES,1\nWas it?,yes,0\n")
    config, store = prepared(tmp_path, url, api_key_env="JUDGE_KEY", labelled=str(labelled))
    weak, strong = run_grading(config, store)
    assert rows_of(store, "weak") == [([True, False, True], False, None)] * NUM
    assert rows_of(store, "strong") == [([True, True, True], True, None)] * NUM
    # Four labelled and two different texts to each of twelve questions. The strong model said nothing that was not judged by then.
    assert (weak["judge"]["own"]["calls"], weak["judge"]["own"]["cache_hits"]) == (4 + 2 * NUM, 0)
    assert (strong["judge"]["own"]["calls"], strong["judge"]["own"]["cache_hits"]) == (0, 4 + NUM)
    # Of four it agrees on two: YES is no yes to it, and the last one is wrong although it says yes.
    assert weak["judge"]["own"]["agreement"]["accuracy"]["value"] == 0.5
    assert server.headers[-1]["authorization"] == f"Bearer {SECRET}"

    again = run_grading(config, store, force=True)
    assert len(server.asked) == 4 + 2 * NUM
    assert [result["judge"]["own"]["calls"] for result in again] == [0, 0]
    assert [result["action"] for result in run_grading(config, store)] == ["skip", "skip"]
    fact = judge_facts(config, store)["own"]
    assert (fact["model"], fact["calls"], fact["agreement"]["num_answers"]) == ("j", 0, 4)
    assert "correct" in fact["rubric"]
    everything = "".join(path.read_text(errors="replace") for path in (tmp_path / "root").rglob("*") if path.is_file())
    assert SECRET not in everything


def test_another_rubric_grades_anew_and_prepares_nothing(tmp_path: Path, server: JudgeServer, url: str) -> None:
    config, store = prepared(tmp_path, url)
    run_grading(config, store, models=["weak"])
    config, store = prepared(tmp_path, url, rubric="Be kind.", max_calls=999)
    assert run_prepare_queries(config, store)["action"] == "skip"
    (result,) = run_grading(config, store, models=["weak"])
    assert (result["action"], result["judge"]["own"]["calls"]) == ("run", 2 * NUM)
    config, store = prepared(tmp_path, url, rubric="Be kind.", max_calls=1, timeout_s=5)
    assert run_grading(config, store, models=["weak"])[0]["action"] == "skip"


def test_rows_without_a_verdict_have_an_error_and_are_asked_again_with_retry_errors(
    tmp_path: Path, server: JudgeServer, url: str
) -> None:
    server.say = lambda body: "hm" if "Is 3 a" in texts_of(body)["QUESTION"] else exact(body)
    config, store = prepared(tmp_path, url)
    (result,) = run_grading(config, store, models=["weak"])
    assert (result["errors"], result["judge"]["own"]["unreadable"]) == (1, 2)
    (error,) = [error for _, _, error in rows_of(store, "weak") if error]
    assert "the grader of own failed" in error
    assert "no verdict that can be read" in error
    server.say = exact
    assert run_grading(config, store, models=["weak"])[0]["action"] == "skip"
    (mended,) = run_grading(config, store, models=["weak"], retry_errors=True)
    assert (mended["errors"], mended["judge"]["own"]["calls"]) == (0, 2)


def test_the_bound_of_calls_ends_the_job_which_goes_on_where_it_was(tmp_path: Path, server: JudgeServer, url: str) -> None:
    config, store = prepared(tmp_path, url, max_calls=20)
    with pytest.raises(ConfigError, match=r"queries\.tasks\.custom\.own\.judge\.max_calls: .*20 answers"):
        run_grading(config, store, models=["weak"])
    assert len(server.asked) == 20
    (result,) = run_grading(config, store, models=["weak"])
    assert (result["action"], result["judge"]["own"]["calls"], len(server.asked)) == ("resume", 2 * NUM - 20, 2 * NUM)
    assert rows_of(store, "weak") == [([True, False, True], False, None)] * NUM


def test_a_wrong_key_ends_the_job_and_is_in_no_message(
    tmp_path: Path, server: JudgeServer, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, store = prepared(tmp_path, url, api_key_env="JUDGE_KEY")
    with pytest.raises(ConfigError, match=r"judge\.api_key_env: the environment variable JUDGE_KEY is not set"):
        run_grading(config, store)
    assert store.grades("weak").state() == "missing"
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    server.say = lambda body: (401, {"error": {"message": f"Incorrect API key provided: {SECRET}"}}, {})
    with pytest.raises(EngineDied, match=r"queries\.tasks\.custom\.own\.judge\.api_key_env") as caught:
        run_grading(config, store)
    assert SECRET not in str(caught.value) + caplog.text
    assert len(server.asked) <= 4 * NUM


def test_in_pairs_an_answer_is_right_unless_the_strong_models_greedy_answer_beats_it_in_both_orders(
    tmp_path: Path, server: JudgeServer, url: str
) -> None:
    def prefers_yes(body: Body) -> str:
        texts = texts_of(body)
        return verdict("first" if texts["FIRST ANSWER"] == "yes" else "second")

    server.say = prefers_yes
    config, store = prepared(tmp_path, url, mode="pairwise")
    run_grading(config, store)
    assert rows_of(store, "weak") == [([True, False, True], False, None)] * NUM
    assert rows_of(store, "strong") == [([True, True, True], True, None)] * NUM
    assert len(server.asked) == 2 * NUM  # "no" against "yes" in both orders; equal answers are asked about by nobody
    store.samples("strong").delete()
    with pytest.raises(ArtifactMissing, match="samples"):
        run_grading(config, store, models=["weak"])


def test_labelled_answers_that_cannot_be_used_cost_nothing_of_older_grades(tmp_path: Path, server: JudgeServer, url: str) -> None:
    config, store = prepared(tmp_path, url)
    run_grading(config, store, models=["weak"])
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text('{"question": "Is it?", "answer": "yes", "correct": "perhaps"}\n')
    config, store = prepared(tmp_path, url, labelled=str(labelled))
    with pytest.raises(TaskError, match="row 1: `correct` must be true or false"):
        run_grading(config, store, models=["weak"])
    assert store.grades("weak").state() == "finished"
