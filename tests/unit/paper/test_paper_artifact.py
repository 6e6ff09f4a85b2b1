import csv
import json
import logging
from html.parser import HTMLParser
from pathlib import Path

import pytest
from paper_run import labels_table, paper_config, scores_table, write_run, write_table

from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.errors import ArtifactMissing, ConfigError
from firewall_ray.evaluation.metrics import apgr
from firewall_ray.paper.artifact import collect, load_claims, run_paper
from firewall_ray.paper.published import published, same_setting
from firewall_ray.store.layout import ArtifactStore


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = write_run(tmp_path_factory.mktemp("run"))
    run_paper(config, ArtifactStore(config.root))
    return config


def folder(config: RunConfig) -> Path:
    return Path(config.root) / "paper"


def rows(config: RunConfig, name: str) -> list[dict[str, str]]:
    with (folder(config) / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_all_tables_and_figures_are_written(finished: RunConfig) -> None:
    names = {path.name for path in folder(finished).iterdir()}
    assert {
        f"table_{number}{what}.{kind}" for number in range(1, 5) for what in ("", "_extended") for kind in ("csv", "tex")
    } <= names
    assert {"tables.md", "paper.html", "paper.json", "_MANIFEST.json"} <= names
    figures = sorted(name for name in names if name.startswith("figure_"))
    # Hard and soft blocking on both pairs, and the weak pass rate on the first; the other routers have no scores.
    assert [int(name.split("_")[1]) for name in figures] == [11, 12, 13, 14, 15]
    assert figures[0] == "figure_11_hard_block_first.png"
    kinds = ("baselines", "labels", "pairs")
    assert {name for name in names if name.startswith("curves_")} == {
        f"curves_{k}_{t}.png" for k in kinds for t in ("facts", "sums")
    }


def test_a_cell_is_the_metric_of_the_routers_scores(finished: RunConfig) -> None:
    labels = labels_table()
    sums = [i for i, (task, split) in enumerate(zip(labels["task"].to_pylist(), labels["split"].to_pylist(), strict=True))
            if (task, split) == ("sums", "test")]  # fmt: skip
    test, scores = labels.take(sums), scores_table(labels, "soft_block", seed=0).take(sums)
    expected = apgr(
        scores["p_weak"].to_numpy(),
        test["pass_rate_weak"].to_numpy(),
        test["pass_rate_strong"].to_numpy(),
        test["prompt"].to_pylist(),
    )
    (row,) = [row for row in rows(finished, "table_1_extended") if (row["task"], row["router"]) == ("sums", "soft_block")]
    assert float(row["APGR (trapezoid)"]) == pytest.approx(expected, abs=1e-9)
    assert float(row["APGR (trapezoid) low"]) < expected < float(row["APGR (trapezoid) high"])


def test_table_1_has_the_baselines_ours_and_the_bounds_but_no_other_label_designs(finished: RunConfig) -> None:
    of_facts = [row["router"] for row in rows(finished, "table_1_extended") if row["task"] == "facts"]
    assert of_facts == [
        *("always weak", "always strong", "random (linear interpolation)", "some_baseline", "soft_block", "hard_block", "oracle")
    ]
    assert {row["task"] for row in rows(finished, "table_1_extended")} == {"facts", "sums", "all"}


def test_the_best_router_of_a_task_is_in_bold_and_never_a_bound(finished: RunConfig) -> None:
    of_task = {
        row["router"]: float(row["APGR (trapezoid)"])
        for row in rows(finished, "table_1_extended")
        if row["task"] == "sums" and row["APGR (trapezoid)"]
    }
    routers = {name: value for name, value in of_task.items() if name in ("some_baseline", "soft_block", "hard_block")}
    text = (folder(finished) / "tables.md").read_text().partition("## Table 1, extended")[2].partition("## Table 2")[0]
    assert text.count("**") == 2 * 3  # two tasks, and all of them
    (best,) = [line for line in text.splitlines() if line.startswith("| sums |") and "**" in line]
    assert best.split(" | ")[1] == max(routers, key=lambda name: routers[name])


def test_linear_interpolation_lies_on_the_line_between_the_models(finished: RunConfig) -> None:
    by_router = {row["router"]: row for row in rows(finished, "table_1_extended") if row["task"] == "all"}
    weak, strong = (float(by_router[f"always {role}"]["PR@50%"]) for role in ("weak", "strong"))
    linear = by_router["random (linear interpolation)"]
    assert float(linear["PR@20%"]) == pytest.approx(weak + 0.2 * (strong - weak))
    assert float(linear["APGR (mean)"]) == pytest.approx(0.5)


def test_table_2_measures_the_first_pairs_scores_against_the_other_pairs_labels(finished: RunConfig) -> None:
    labels, scores = labels_table(gap=0.3), scores_table(labels_table(), "soft_block", seed=0)
    test = [i for i, split in enumerate(labels["split"].to_pylist()) if split == "test"]
    labels, scores = labels.take(test), scores.take(test)
    rates = (labels["pass_rate_weak"].to_numpy(), labels["pass_rate_strong"].to_numpy())
    expected = apgr(scores["p_weak"].to_numpy(), *rates, labels["prompt"].to_pylist())
    (row,) = [row for row in rows(finished, "table_2_extended") if (row["task"], row["router"]) == ("all", "soft_block")]
    assert row["pair"] == "middle-strong"
    assert float(row["APGR (trapezoid)"]) == pytest.approx(expected, abs=1e-9)


def test_margin_sampling_of_another_pair_is_read_from_that_pair(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    labels = labels_table()
    write_table(tmp_path, "scores/margin_sampling", scores_table(labels, noise=5.0, seed=3))
    own = scores_table(labels, noise=0.0)  # the best there is
    write_table(tmp_path, "pairs/middle-strong/scores/margin_sampling", own)
    results = collect(config, ArtifactStore(config.root), ["soft_block", "hard_block", "weak_pass_rate", "margin_sampling"])
    there, here = results.pairs["middle-strong"]["routers"], results.report["routers"]
    assert there["margin_sampling"]["all"]["apgr"]["value"] > 0.6 > here["margin_sampling"]["all"]["apgr"]["value"]


def test_table_4_compares_each_backbone_with_the_runs_own(finished: RunConfig) -> None:
    of_all = [row for row in rows(finished, "table_4_extended") if row["task"] == "all"]
    assert [(row["label"], row["backbone"]) for row in of_all] == [
        (design, name) for design in ("soft_block", "hard_block") for name in ("deberta (from scratch)", "llama")
    ]
    own, other = of_all[0], of_all[1]
    assert own["difference in APGR (mean)"] == ""
    assert float(other["difference in APGR (mean)"]) == pytest.approx(
        float(other["APGR (mean)"]) - float(own["APGR (mean)"]), abs=1e-9
    )


def test_the_papers_layout_has_the_numbers_of_the_extended_table(finished: RunConfig) -> None:
    laid_out = {(row["source"], row["Method"]): row for row in rows(finished, "table_1")}
    extended = {(row["task"], row["router"]): row for row in rows(finished, "table_1_extended")}
    for method, router in (("Ours (Soft Block)", "soft_block"), ("Linear Interpolation", "random (linear interpolation)")):
        for dataset, task in (("TriviaQA", "facts"), ("GSM8K", "sums")):
            for column, other in (("APGR", "APGR (mean)"), ("20%", "PR@20%"), ("50%", "PR@50%"), ("80%", "PR@80%")):
                shown = float(laid_out["this run", method][f"{dataset} {column}"])
                assert shown == pytest.approx(100 * float(extended[task, router][other]), abs=1e-7)
    assert laid_out["this run", "Hybrid LLM"]["TriviaQA APGR"] == ""  # not measured, and its row is there
    assert laid_out["this run", "Ours (Soft Block)"]["HumanEval 20%"] == ""  # no task stands for it
    assert float(laid_out["paper", "Hybrid LLM"]["TriviaQA APGR"]) == 49.17


def test_the_second_pair_is_table_2s_and_the_other_backbone_table_4s(finished: RunConfig) -> None:
    for number, method, extended, router in (
        (2, "Ours (Soft Block)", {"pair": "middle-strong"}, "soft_block"),
        (4, "Soft Blocking (Causal)", {"label": "soft_block"}, "llama"),
        (4, "Soft Blocking (Deberta)", {"label": "soft_block"}, "deberta (from scratch)"),
    ):
        (ours,) = [row for row in rows(finished, f"table_{number}") if (row["source"], row["Method"]) == ("this run", method)]
        last = "router" if number == 2 else "backbone"
        wanted = {**extended, "task": "sums", last: router}
        (row,) = [row for row in rows(finished, f"table_{number}_extended") if wanted.items() <= row.items()]
        assert float(ours["GSM8K APGR"]) == pytest.approx(100 * float(row["APGR (mean)"]), abs=1e-7)


def test_a_claim_is_the_difference_of_two_rows_of_the_tables(finished: RunConfig) -> None:
    (claim,) = [
        claim
        for claim in load_claims(ArtifactStore(finished.root).paper())
        if (claim["statement"], claim["dataset"]) == ("DeBERTa is ahead of the causal backbone, Soft Blocking", "GSM8K")
    ]
    of_4 = {row["Method"]: float(row["GSM8K APGR"]) for row in rows(finished, "table_4") if row["source"] == "this run"}
    assert claim["value"] == pytest.approx((of_4["Soft Blocking (Deberta)"] - of_4["Soft Blocking (Causal)"]) / 100, abs=1e-9)
    assert claim["low"] < claim["value"] < claim["high"]
    (extended,) = [
        row
        for row in rows(finished, "table_4_extended")
        if (row["label"], row["task"], row["backbone"]) == ("soft_block", "sums", "llama")
    ]
    bounds = [-float(extended[f"difference in APGR (mean) {end}"]) for end in ("high", "low")]
    assert [claim["low"], claim["high"]] == pytest.approx(bounds, abs=1e-9)  # the same resamples


def test_the_second_run_is_skipped_and_new_scores_are_noticed(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    store = ArtifactStore(config.root)
    assert run_paper(config, store)["action"] == "run"
    assert run_paper(config, store)["action"] == "skip"
    write_table(tmp_path, "scores/another", scores_table(labels_table(), seed=4))
    assert run_paper(config, store)["action"] == "run"


def test_numbers_of_the_plan_do_not_make_the_tables_again(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    run_paper(config, ArtifactStore(config.root))
    planned = paper_config(tmp_path, plan={"scoring_queries_per_s": 5})
    assert run_paper(planned, ArtifactStore(config.root))["action"] == "skip"


def test_one_task_is_not_shown_twice(tmp_path: Path) -> None:
    config = paper_config(tmp_path, pairs=[], backbones={}, routers=["soft_block"])
    labels = labels_table()
    labels = labels.filter([task == "sums" for task in labels["task"].to_pylist()])
    write_table(tmp_path, "labels", labels)
    write_table(tmp_path, "scores/soft_block", scores_table(labels))
    run_paper(config, ArtifactStore(config.root))
    assert {row["task"] for row in rows(config, "table_1_extended")} == {"sums"}
    assert not (folder(config) / "table_2_extended.csv").exists()  # no other pair


def test_a_router_that_is_to_be_shown_and_has_no_scores_is_named(tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(
        ConfigError, match=r"paper\.routers: 'win_rate' has no scores .*; there are hard_block, soft_block, some_base"
    ):
        run_paper(paper_config(tmp_path, routers=["win_rate"]), ArtifactStore(str(tmp_path)))
    assert not (tmp_path / "paper").exists()


def test_labels_of_a_pair_that_were_not_made_name_the_command(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    with_another = paper_config(tmp_path, pairs=[*config.paper.pairs, {"weak": "weak", "strong": "middle"}])
    with pytest.raises(ArtifactMissing, match=r"pairs/weak-middle/labels\. Run: python jobs/paper\.py"):
        run_paper(with_another, ArtifactStore(config.root))


def test_the_papers_setting_is_known(finished: RunConfig) -> None:
    assert same_setting(load_config("jobs/configs/paper.yaml"))
    assert not same_setting(finished)
    assert not same_setting(load_config("jobs/configs/paper.yaml", ["sampling.num_samples=16"]))
    assert "settings are others" in (folder(finished) / "tables.md").read_text()


def test_the_page_is_whole_and_asks_for_nothing_from_outside(finished: RunConfig) -> None:
    page = (folder(finished) / "paper.html").read_text()

    class Reader(HTMLParser):
        found: list[tuple[str, dict[str, str | None]]]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.append((tag, dict(attrs)))

    reader = Reader()
    reader.found = []
    reader.feed(page)
    tags = [tag for tag, _ in reader.found]
    assert tags.count("svg") == 5 + 6  # the paper's figures that there are, and our curves
    assert tags.count("figcaption") == 5 + 6
    for number in range(3, 19):  # those that are left out as well
        assert f">Figure {number}. " in page
    assert tags.count("table") == 1 + 3 * len(published().rows)  # claims; and ours, the paper's, the extended
    assert not [attrs for _, attrs in reader.found if (attrs.get("src") or attrs.get("href") or "#")[0] not in "#"]


def test_paper_json_is_strict_json_even_where_a_metric_is_undefined(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    config = paper_config(tmp_path, pairs=[], backbones={}, routers=["soft_block"])
    labels = labels_table(gap=0.0)  # the strong model is never better
    write_table(tmp_path, "labels", labels)
    write_table(tmp_path, "scores/soft_block", scores_table(labels))
    with pytest.warns(match="undefined"):
        run_paper(config, ArtifactStore(config.root))
    found = json.loads((folder(config) / "paper.json").read_text())
    assert {claim["value"] for claim in found["claims"]} == {None}
    assert {claim["verdict"] for claim in found["claims"]} == {"not measured"}
    (row,) = [row for row in rows(config, "table_3_extended") if row["task"] == "all"]
    assert row["APGR (mean)"] == row["APGR (trapezoid)"] == ""
