import json
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import grade
from handmade import write as write_dataset
from rich.console import Console

from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError, ArtifactMissing
from firewall_ray.evaluation.bins import binned
from firewall_ray.evaluation.metrics import METRICS, UndefinedMetricWarning, evaluate
from firewall_ray.evaluation.table import load_report, print_table
from firewall_ray.policy import tie_hash
from firewall_ray.schemas import LABELS, SCORES
from firewall_ray.stages.report import run_report
from firewall_ray.store.layout import ArtifactStore

NUM = 240  # queries a task: half validation, half test


def labels_table(tasks: tuple[str, ...] = ("sums",), gap: float = 0.4, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    size = NUM * len(tasks)
    weak = rng.binomial(8, 0.3, size) / 8
    strong = np.clip(weak + gap * (rng.random(size) < 0.6), 0, 1)
    columns: dict[str, Any] = {
        "query_id": [f"q{i:04d}" for i in rng.permutation(size)],
        "task": np.repeat(tasks, NUM),
        "split": np.tile(["validation", "test"], size // 2),
        "prompt": [f"Question: {i}\nAnswer: " for i in range(size)],
        "num_samples": np.full(size, 8),
        "pass_rate_weak": weak,
        "pass_rate_strong": strong,
        "greedy_weak": weak > 0.5,
        "greedy_strong": strong > 0.5,
    }
    label = 1 - (1 - weak) * strong
    return pa.table({field.name: pa.array(columns.get(field.name, label)).cast(field.type, safe=False) for field in LABELS}, LABELS)


def scores_table(labels: pa.Table, noise: float = 0.2, seed: int = 0) -> pa.Table:
    p_weak = np.clip(labels["soft_block"].to_numpy() + np.random.default_rng(seed).normal(0, noise, len(labels)), 0, 1)
    return pa.table({"query_id": labels["query_id"], "p_weak": p_weak.astype(np.float32)}, SCORES)


def write(root: Path, labels: pa.Table, **scores: pa.Table) -> ArtifactStore:
    for folder, table in {"labels": labels, **{f"scores/{name}": table for name, table in scores.items()}}.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / folder / "somebody-elses-name.parquet")
    return ArtifactStore(str(root))


def config(root: Path, **evaluation: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "root": str(root),
            "queries": {"tasks": {"tiny_world": {}}},
            "models": {"small": {"path": "a"}, "large": {"path": "b"}},
            "pair": {"weak": "small", "strong": "large"},
            "evaluation": {"num_bootstrap": 100, **evaluation},
        }
    )


def strict_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not strict JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table, dict[str, Any]]:
    root = tmp_path_factory.mktemp("two_tasks")
    labels = labels_table(("sums", "facts"))
    store = write(root, labels, soft_block=scores_table(labels), noisy=scores_table(labels, 1.0, 1))
    run_report(config(root), store)
    return root, labels, strict_json((root / "report" / "report.json").read_text())


def test_the_contracts_keys_are_there_for_every_task_and_all(two_tasks: tuple) -> None:
    _, _, report = two_tasks
    assert set(report["models"]) == {"small", "large"}
    for of_task in report["models"].values():
        assert set(of_task) == {"all", "sums", "facts"}
    for name in ("soft_block", "noisy", "random", "oracle"):
        assert set(report["routers"][name]) == {"all", "sums", "facts"}
        for task, size in {"all": NUM, "sums": NUM // 2, "facts": NUM // 2}.items():
            metrics = report["routers"][name][task]
            assert metrics["num_queries"] == size
            for metric in METRICS:
                assert metrics[metric]["low"] <= metrics[metric]["high"]


def test_the_numbers_are_those_of_the_metrics_on_the_test_split(two_tasks: tuple) -> None:
    root, labels, report = two_tasks
    test = labels.to_pandas().query("split == 'test'").merge(pq.read_table(root / "scores" / "noisy").to_pandas(), on="query_id")
    for task, rows in {"all": test, "facts": test.query("task == 'facts'")}.items():
        expected = evaluate(rows["p_weak"], rows["pass_rate_weak"], rows["pass_rate_strong"], rows["prompt"].tolist())
        found = {metric: report["routers"]["noisy"][task][metric]["value"] for metric in METRICS}
        assert found == pytest.approx(expected, abs=1e-9)
        assert report["models"]["small"][task]["pass_rate"] == pytest.approx(rows["pass_rate_weak"].mean())
        assert report["models"]["large"][task]["pass_rate"] == pytest.approx(rows["pass_rate_strong"].mean())


def test_the_models_intervals_have_the_width_of_a_mean(two_tasks: tuple) -> None:
    """2 * 1.96 * sd / sqrt(N); of 100 resamples, a bound is known to a fifth or so."""
    _, labels, report = two_tasks
    rates = labels["pass_rate_weak"].to_numpy()[labels["split"].to_numpy(zero_copy_only=False) == "test"]
    found = report["models"]["small"]["all"]
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * rates.std() / np.sqrt(NUM), rel=0.35)


def test_random_is_exact_and_the_oracle_above_every_router(two_tasks: tuple) -> None:
    _, _, report = two_tasks
    apgr = {name: report["routers"][name]["all"]["apgr"]["value"] for name in report["routers"]}
    assert apgr["random"] == pytest.approx(0.5)
    assert apgr["oracle"] >= max(apgr["soft_block"], apgr["noisy"])
    assert report["routers"]["random"]["all"]["cpt_50"]["value"] == pytest.approx(0.5)


def test_the_second_router_is_compared_with_the_first_design_of_the_config(two_tasks: tuple) -> None:
    _, _, report = two_tasks
    assert report["comparisons"]["reference"] == "soft_block"
    difference = report["comparisons"]["differences"]["noisy"]["all"]["apgr"]
    routers = report["routers"]
    expected = routers["noisy"]["all"]["apgr"]["value"] - routers["soft_block"]["all"]["apgr"]["value"]
    assert difference["value"] == pytest.approx(expected)
    assert difference["high"] < 0


def test_thresholds_are_calibrated_on_validation_and_checked_on_test(two_tasks: tuple) -> None:
    _, _, report = two_tasks
    table = report["thresholds"]["soft_block"]
    assert (table["calibrated_on"], table["num_calibration"]) == ("validation", NUM)
    assert [row["strong_fraction"] for row in table["rows"]] == pytest.approx(np.arange(1, 10) / 10)
    for row in table["rows"]:
        # Two samples of 240: the share's sd is at most sqrt(0.25 / 240 * 2) = 0.046.
        assert row["realised_fraction"] == pytest.approx(row["strong_fraction"], abs=0.18)


def test_tied_scores_realise_the_target_and_the_table_says_how_many_are_tied(tmp_path: Path) -> None:
    labels = labels_table(("sums", "facts", "codes"))
    p_weak = np.resize(np.array([0.1] * 12 + [0.4] * 2 + [0.9] * 6), len(labels))
    p_weak = p_weak[np.random.default_rng(0).permutation(len(labels))].astype(np.float32)
    store = write(tmp_path, labels, tied=pa.table({"query_id": labels["query_id"], "p_weak": p_weak}, SCORES))
    run_report(config(tmp_path, num_bootstrap=10), store)
    row = next(row for row in load_report(store.report())["thresholds"]["tied"]["rows"] if row["strong_fraction"] == 0.5)
    validation = p_weak[labels["split"].to_numpy(zero_copy_only=False) == "validation"]
    assert row["num_tied"] == np.sum(validation == np.float32(0.1))
    assert row["tie_share"] == pytest.approx(180 / row["num_tied"])  # half of 360 validation queries
    test = labels["split"].to_numpy(zero_copy_only=False) == "test"
    prompts = labels["prompt"].to_numpy(zero_copy_only=False)[test]
    # The hash of the prompt decides, as in the server; each query on its own, whatever the row.
    strong = [p == np.float32(0.1) and tie_hash(prompt) < row["tie_share"] for p, prompt in zip(p_weak[test], prompts, strict=True)]
    assert row["realised_fraction"] == pytest.approx(np.mean(strong))
    # 360 test queries: the number of 0.1s and the hashes both vary; sd at most sqrt(0.25 / 360) * 2 = 0.053.
    assert row["realised_fraction"] == pytest.approx(0.5, abs=0.15)


def test_bins_hold_every_query_once(two_tasks: tuple) -> None:
    _, _, report = two_tasks
    for router in ("soft_block", "noisy"):
        assert sum(row["num_queries"] for row in report["bins"][router]["rows"]) == NUM


def test_bins_by_hand() -> None:
    rows = binned(
        p_weak=np.array([0.0, 0.4, 0.5, 1.0]),
        pass_rate_weak=np.array([0.0, 0.5, 1.0, 1.0]),
        pass_rate_strong=np.array([1.0, 1.0, 0.5, 1.0]),
        label=np.array([0.0, 0.5, 1.0, 1.0]),
        num_bins=2,
    )
    # [0, 0.5) holds the first two, [0.5, 1] the others: gains (1 + 0.5) / 2 and (-0.5 + 0) / 2.
    assert [row["num_queries"] for row in rows] == [2, 2]
    assert [row["gain"] for row in rows] == pytest.approx([0.75, -0.25])
    assert [row["p_weak"] for row in rows] == pytest.approx([0.2, 0.75])


def test_bins_of_scores_that_are_no_probabilities_span_their_range() -> None:
    rows = binned(np.array([-3.0, 7.0]), np.zeros(2), np.ones(2), np.zeros(2), num_bins=10)
    assert (rows[0]["low"], rows[-1]["high"]) == (-3, 7)
    assert (rows[0]["num_queries"], rows[-1]["num_queries"]) == (1, 1)


class Outside(HTMLParser):
    """Collects what a page would fetch, and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "data") and not (value or "").startswith("#")
        ]
        self.fetched += [tag] if tag in ("script", "link", "iframe") else []
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained_whole_and_has_every_router(two_tasks: tuple) -> None:
    root, _, report = two_tasks
    page = (root / "report" / "report.html").read_text()
    outside = Outside()
    outside.feed(page)
    assert outside.fetched == []
    assert outside.open == []
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    for name in report["routers"]:
        assert name in page
    assert f"{report['routers']['noisy']['all']['apgr']['value']:.3f}" in page
    assert "prefers-color-scheme: dark" in page
    for name in ("cost_quality", "cost_quality_sums", "cost_quality_facts", "bins_soft_block", "bins_noisy"):
        assert (root / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def write_grades(root: Path, labels: pa.Table, failure: str, models: tuple[str, ...] = ("small", "large")) -> None:
    """As many right samples of eight as the labels say, and `failure` for the others."""
    for model, column in zip(("small", "large"), ("pass_rate_weak", "pass_rate_strong"), strict=True):
        if model in models:
            right = np.rint(8 * labels[column].to_numpy()).astype(int).tolist()
            rows = zip(labels["query_id"].to_pylist(), right, strict=True)
            graded = [
                grade(name, "1" * num + "0" * (8 - num), verdicts=["right"] * num + [failure] * (8 - num)) for name, num in rows
            ]
            write_dataset(ArtifactStore(str(root)).grades(model), graded)


def test_the_report_says_what_queries_are_blocked_for_and_warns_where_it_is_no_wrong_answer(tmp_path: Path) -> None:
    labels = labels_table(("sums", "facts"))
    store = write(tmp_path, labels, soft_block=scores_table(labels))
    for failure, warned in (("truncated", True), ("wrong", False)):
        write_grades(tmp_path, labels, failure)
        assert run_report(config(tmp_path), store)["action"] == "run"  # also the second time: other grades
        report = strict_json((tmp_path / "report" / "report.json").read_text())
        test = labels.to_pandas().query("split == 'test'")
        blocked = test.query("pass_rate_weak == 0 and pass_rate_strong == 0")
        assert report["verdicts"]["small"]["sums"]["right"] == pytest.approx(test.query("task == 'sums'")["pass_rate_weak"].mean())
        assert (report["blocked"]["all"]["num_queries"], report["blocked"]["all"][failure]) == (len(blocked), 1.0)
        out = StringIO()
        print_table(report, Console(file=out, width=2_000))
        page = (tmp_path / "report" / "report.html").read_text()
        for shown in (page, out.getvalue(), " ".join(report["notices"])):
            assert ("100% were cut off by the limit of tokens" in shown) == warned
        assert f"{len(blocked)} of the test queries ({len(blocked) / len(test):.1%}) are solved by neither model" in page
        assert (tmp_path / "report" / "verdicts.png").read_bytes().startswith(b"\x89PNG")


def test_without_grades_or_their_verdicts_the_report_says_that_it_cannot_know(tmp_path: Path) -> None:
    labels = labels_table()
    store = write(tmp_path, labels, soft_block=scores_table(labels))

    def reason() -> str:
        run_report(config(tmp_path, num_bootstrap=10), store)
        report = load_report(store.report())
        assert "verdicts" not in report
        assert "Not known here" in (tmp_path / "report" / "report.html").read_text()
        return str(report["without_verdicts"])

    assert "nothing at" in reason()
    write_grades(tmp_path, labels, "wrong", ("small",))
    assert "grades/large" in reason()
    write_dataset(store.grades("large"), [grade("q0000", "1")])
    assert "grades/large has no verdicts of these queries" in reason()


def test_the_table_in_the_terminal_names_every_router(two_tasks: tuple) -> None:
    _, _, report = two_tasks
    out = StringIO()
    print_table(report, Console(file=out, width=80))
    text = out.getvalue()
    metrics = report["routers"]["soft_block"]["all"]
    assert f"{metrics['apgr']['value']:.3f} [{metrics['apgr']['low']:.3f}, {metrics['apgr']['high']:.3f}]" in text
    rates, cpts = ([metrics[f"{kind}_{percent}"]["value"] for percent in (20, 50, 80)] for kind in ("pass_rate", "cpt"))
    assert " / ".join(f"{100 * rate:.1f}" for rate in rates) in text
    assert " / ".join(f"{100 * cpt:.0f}" for cpt in cpts) in text
    for row in ("noisy", "random", "oracle", "always small", "always large"):
        assert row in text


def test_a_finished_report_is_reused_until_an_input_or_setting_changes(tmp_path: Path) -> None:
    labels = labels_table()
    store = write(tmp_path, labels, soft_block=scores_table(labels))
    assert run_report(config(tmp_path), store)["action"] == "run"
    assert run_report(config(tmp_path), store)["action"] == "skip"
    assert run_report(config(tmp_path, seed=1), store)["action"] == "run"
    write(tmp_path, labels, another=scores_table(labels, seed=2))
    assert run_report(config(tmp_path, seed=1), store)["action"] == "run"
    assert run_report(config(tmp_path, seed=1), store, force=True)["action"] == "run"
    assert "another" in load_report(store.report())["routers"]


def test_the_order_of_the_files_rows_changes_no_number(tmp_path: Path) -> None:
    labels = labels_table()
    tied = pa.table({"query_id": labels["query_id"], "p_weak": np.round(scores_table(labels)["p_weak"].to_numpy(), 1)}, SCORES)
    rows = np.random.default_rng(9).permutation(len(labels))
    reports = []
    for name, (a, b) in {"one": (labels, tied), "two": (labels.take(rows), tied.take(rows[::-1].copy()))}.items():
        store = write(tmp_path / name, a, soft_block=b)
        run_report(config(tmp_path), store)
        reports.append({key: load_report(store.report())[key] for key in ("models", "routers", "thresholds", "bins", "curves")})
    assert reports[0] == reports[1]


def test_scored_queries_without_a_label_are_ignored(tmp_path: Path) -> None:
    labels = labels_table()
    extra = pa.table({"query_id": ["failed to generate"], "p_weak": pa.array([0.5], pa.float32())}, SCORES)
    store = write(tmp_path, labels, soft_block=pa.concat_tables([scores_table(labels), extra]))
    run_report(config(tmp_path), store)
    assert load_report(store.report())["routers"]["soft_block"]["all"]["num_queries"] == NUM // 2


def test_a_router_without_a_task_is_left_out_of_it_with_a_notice(tmp_path: Path) -> None:
    labels = labels_table(("sums", "facts"))
    only_sums = scores_table(labels).filter(pa.array(labels["task"].to_numpy(zero_copy_only=False) == "sums"))
    store = write(tmp_path, labels, soft_block=scores_table(labels), sums_only=only_sums)
    run_report(config(tmp_path), store)
    report = load_report(store.report())
    assert "facts" not in report["routers"]["sums_only"]
    assert report["routers"]["sums_only"]["all"]["num_queries"] == NUM // 2
    assert report["routers"]["sums_only"]["all"]["apgr"] == report["routers"]["sums_only"]["sums"]["apgr"]
    assert "all" not in report["comparisons"]["differences"]["sums_only"]  # other queries: not comparable
    assert any("sums_only" in notice and "facts" in notice for notice in report["notices"])


def test_scores_that_are_no_probabilities_are_ranked_all_the_same(tmp_path: Path) -> None:
    labels = labels_table()
    scores = scores_table(labels)
    logits = pa.table({"query_id": scores["query_id"], "p_weak": 40 * scores["p_weak"].to_numpy() - 30}, SCORES)
    store = write(tmp_path, labels, soft_block=scores, as_logits=logits)
    run_report(config(tmp_path), store)
    routers = load_report(store.report())["routers"]
    assert routers["as_logits"]["all"] == routers["soft_block"]["all"]


def test_one_test_query_is_enough_for_a_report(tmp_path: Path) -> None:
    labels = labels_table()
    store = write(tmp_path, labels, soft_block=scores_table(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        assert run_report(config(tmp_path), store, limit=1)["queries"] == 1


@pytest.mark.parametrize("gap", [0.0, -0.2])
def test_no_gap_is_null_in_a_report_that_still_renders(tmp_path: Path, gap: float) -> None:
    labels = labels_table(gap=gap)
    store = write(tmp_path, labels, soft_block=scores_table(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        run_report(config(tmp_path), store)
    report = strict_json((tmp_path / "report" / "report.json").read_text())
    metrics = report["routers"]["soft_block"]["all"]
    assert metrics["apgr"]["value"] is metrics["cpt_50"]["value"] is None
    assert metrics["pass_rate_50"]["value"] is not None
    assert "no gap to recover" in (tmp_path / "report" / "report.html").read_text()
    print_table(report, Console(file=StringIO()))


def test_names_that_are_markup_elsewhere_are_shown_as_they_are(tmp_path: Path) -> None:
    labels = labels_table(("<b>sums</b> & $x_1$", "../b"))
    store = write(tmp_path, labels, **{"a$b^$[red]": scores_table(labels)})
    run_report(config(tmp_path), store)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<b>sums" not in page
    assert "a$b^$[red]" in page
    out = StringIO()
    print_table(load_report(store.report()), Console(file=out, width=80))
    assert "a$b^$[red]" in out.getvalue()


def test_limit_keeps_the_first_test_queries(tmp_path: Path) -> None:
    labels = labels_table()
    store = write(tmp_path, labels, soft_block=scores_table(labels))
    assert run_report(config(tmp_path), store, limit=50)["queries"] == 50


def broken(case: str, labels: pa.Table, scores: pa.Table) -> tuple[pa.Table, dict[str, pa.Table]]:
    def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
        index = table.column_names.index(name)
        return table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))

    nan, rates = scores["p_weak"].to_numpy().copy(), labels["pass_rate_weak"].to_numpy().copy()
    nan[7], rates[1] = np.nan, 1.5
    return {
        "no scores": (labels, {}),
        "a part is missing": (labels, {"mine": scores[:-100]}),
        "other queries": (labels, {"mine": with_column(scores, "query_id", [f"x{i}" for i in range(len(scores))])}),
        "twice": (labels, {"mine": pa.concat_tables([scores, scores[:3]])}),
        "not finite": (labels, {"mine": with_column(scores, "p_weak", nan)}),
        "labels twice": (pa.concat_tables([labels, labels[:1]]), {"mine": scores}),
        "rate": (with_column(labels, "pass_rate_weak", rates), {"mine": scores}),
        "no test split": (with_column(labels, "split", ["train"] * len(labels)), {"mine": scores}),
        "wrong column": (labels, {"mine": scores.rename_columns(["query_id", "score"])}),
    }[case]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no scores", "no router under"),
        ("a part is missing", r"'mine'.* lacks 50 of the 120 labelled test queries of task 'sums'"),
        ("other queries", "'mine'.* scores none of the 120"),
        ("twice", r"'mine'.* comes more than once .3 such"),
        ("not finite", "'mine'.* p_weak is nan for query q"),
        ("labels twice", "labels: .* comes more than once"),
        ("rate", "'pass_rate_weak': 1.5 for query q"),
        ("no test split", r"no query of split 'test' \(its splits: \['train'\]\)"),
        ("wrong column", r"lacks the columns \['p_weak'\]"),
    ],
)
def test_bad_input_is_named_and_leaves_no_report(tmp_path: Path, case: str, message: str) -> None:
    labels = labels_table()
    labels, scores = broken(case, labels, scores_table(labels))
    store = write(tmp_path, labels, **scores)
    with pytest.raises((ArtifactError, ArtifactMissing), match=message):
        run_report(config(tmp_path), store)
    assert store.report().state() == "missing"


def test_scores_that_were_begun_and_never_finished_are_refused(tmp_path: Path) -> None:
    labels = labels_table()
    store = write(tmp_path, labels, soft_block=scores_table(labels))
    store.scores("soft_block").begin({}, keep_files=True)
    with pytest.raises(ArtifactMissing, match="never finished"):
        run_report(config(tmp_path), store)


def test_the_job_prints_the_table_and_one_json_line(tmp_path: Path) -> None:
    labels = labels_table()
    write(tmp_path / "root", labels, soft_block=scores_table(labels))
    yaml = tmp_path / "run.yaml"
    yaml.write_text(config(tmp_path).model_dump_json(exclude_defaults=True))
    repository = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "jobs/report.py", "--config", str(yaml), "--root", str(tmp_path / "root")],
        capture_output=True,
        text=True,
        cwd=repository,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert Path(result["stages"][0]["path"]).is_file()
    assert "soft_block" in done.stderr
    assert "APGR" in done.stderr


def test_the_judge_of_the_grades_is_in_the_report_with_its_rubric_and_agreement(tmp_path: Path) -> None:
    labels = labels_table()
    store = write(tmp_path, labels, soft_block=scores_table(labels))
    run_report(config(tmp_path), store)
    assert load_report(store.report())["judge"] == {}
    assert "The judge" not in (tmp_path / "report" / "report.html").read_text()
    undefined = {"value": None, "low": None, "high": None}
    agreement = {"num_answers": 40, "accuracy": {"value": 0.9, "low": 0.8, "high": 0.975}, "kappa": undefined, "num_not_judged": 1}
    counts = {"calls": 1_200, "cache_hits": 7, "unreadable": 3}
    judge = {"model": "j-1", "mode": "absolute", "rubric": "Be <fair>."}
    for key, more in (("small", {"agreement": agreement}), ("large", {})):
        store.grades(key).begin({"judges": {"sums": judge}})
        store.grades(key).finish({}, {"judge": {"sums": counts | more}})
    run_report(config(tmp_path), store, force=True)
    found = load_report(store.report())["judge"]
    assert found == {"sums": {**judge, "calls": 2_400, "cache_hits": 14, "unreadable": 6, "agreement": agreement}}
    page = (tmp_path / "report" / "report.html").read_text()
    for text in ("The judge", "j-1", "Be &lt;fair&gt;.", "90.0%", "2,400"):
        assert text in page
