"""The controls of length and task, and what the report says of a router that does not beat them."""

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import make_config, write
from rich.console import Console

from firewall_ray.errors import ArtifactError, ArtifactMissing
from firewall_ray.evaluation.html import finding
from firewall_ray.evaluation.table import by_apgr, load_report, print_table
from firewall_ray.schemas import LABEL_DESIGNS, LABELS, SCORES
from firewall_ray.stages.control_shuffled import shuffled_labels
from firewall_ray.stages.controls import fit_length, fit_task, read_train, run_controls
from firewall_ray.stages.report import run_report
from firewall_ray.store.layout import ArtifactStore

SHORT, LONG = "How many?", "How many of those that were there at first are left at the end?"


def label_row(number: int, split: str, prompt: str, weak: float, strong: float, task: str = "sums") -> dict[str, Any]:
    row = {"query_id": f"q{number:04d}", "task": task, "split": split, "prompt": prompt, "num_samples": 4}
    rates = {"pass_rate_weak": weak, "pass_rate_strong": strong, "greedy_weak": weak > 0.5, "greedy_strong": strong > 0.5}
    return {**row, **rates, **dict.fromkeys(LABEL_DESIGNS, 1 - (1 - weak) * strong)}


def long_ones_need_the_strong_model(num: int = 40, tasks: tuple[str, ...] = ("sums",)) -> list[dict[str, Any]]:
    """A third of each split, half of it short: solved by both; the other half long, solved by the strong model alone."""
    splits = ("train", "validation", "test")
    rows = []
    for number in range(3 * num * len(tasks)):
        is_long = number // 3 % 2 == 1
        prompt = f"{number:04d} {LONG if is_long else SHORT}"
        rows.append(label_row(number, splits[number % 3], prompt, 0.0 if is_long else 1.0, 1.0, tasks[number // 3 // num]))
    return rows


def made(root: Path, rows: list[dict[str, Any]], **scores: list[float]) -> ArtifactStore:
    store = ArtifactStore(str(root))
    write(store.labels(), rows)
    for name, p_weak in scores.items():
        write(store.scores(name), [{"query_id": row["query_id"], "p_weak": p} for row, p in zip(rows, p_weak, strict=True)])
    return store


def config(root: Path, **evaluation: Any) -> Any:
    return make_config(str(root), evaluation={"num_bootstrap": 100, **evaluation})


def reported(root: Path, store: ArtifactStore, **evaluation: Any) -> dict[str, Any]:
    run_report(config(root, **evaluation), store)
    return load_report(store.report())


def printed(report: dict[str, Any]) -> str:
    out = StringIO()
    print_table(report, Console(file=out, width=80))
    return " ".join(out.getvalue().split())


def coin(num: int, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).random(num).tolist()


def test_the_length_is_the_oracle_where_labels_depend_on_length_alone_and_its_equal_does_not_beat_it(tmp_path: Path) -> None:
    rows = long_ones_need_the_strong_model()
    # A router that knows the length and nothing else, and one that knows nothing.
    store = made(tmp_path, rows, soft_block=[row["soft_block"] for row in rows], blind=coin(len(rows)))
    report = reported(tmp_path, store)
    apgr = {name: of["all"]["apgr"]["value"] for name, of in report["routers"].items()}
    # 20 of 40 test queries gain 1: the first half of the calls recovers the whole gap. (0.2 + .. + 0.8) + 1 x 5 + 1/2, over 10.
    assert apgr["control_length"] == apgr["oracle"] == pytest.approx(0.75)
    equal = report["controls"]["soft_block"]["control_length"]["all"]
    assert (equal["value"], equal["low"], equal["high"]) == (0, 0, 0)
    words = "soft_block does not beat the prompt's length alone on 'all': difference in APGR +0.000 [+0.000, +0.000]"
    assert words in printed(report)
    assert words.replace("'", "&#39;") in (tmp_path / "report" / "report.html").read_text()
    assert "not surely better than the prompt's length alone" in finding(report, "soft_block")


def test_a_paired_interval_has_the_sign_of_the_router_minus_the_control(tmp_path: Path) -> None:
    rows = long_ones_need_the_strong_model()
    store = made(tmp_path, rows, soft_block=[row["soft_block"] for row in rows], inverted=[-row["soft_block"] for row in rows])
    report = reported(tmp_path, store)
    # One task is a constant, so a coin: the good router beats it, its inverse loses to it and to the length.
    assert report["controls"]["soft_block"]["control_task"]["all"]["low"] > 0
    assert report["controls"]["inverted"]["control_task"]["all"]["high"] < 0
    # 0.25 - 0.75: an inverted ranking recovers nothing before the second half of the calls.
    assert report["controls"]["inverted"]["control_length"]["all"]["value"] == pytest.approx(-0.5)
    assert report["controls"]["inverted"]["control_length"]["sums"] == report["controls"]["inverted"]["control_length"]["all"]
    assert "soft_block does not beat the task's name" not in printed(report)


def test_a_router_that_beats_the_controls_is_said_to_lead_them(tmp_path: Path) -> None:
    """Prompts of one length: the length knows nothing, and is a coin as the task is."""
    rows = [{**row, "prompt": f"{i:04d}"} for i, row in enumerate(long_ones_need_the_strong_model(120))]
    store = made(tmp_path, rows, soft_block=[row["soft_block"] for row in rows])
    report = reported(tmp_path, store)
    control = pq.read_table(tmp_path / "scores" / "control_length")["p_weak"].to_numpy()
    assert set(control.tolist()) == {0.5}
    assert report["controls"]["soft_block"]["control_length"]["all"]["low"] > 0
    assert "its lead over the prompt's length alone and over the task's name alone" in finding(report, "soft_block")
    assert "does not beat" not in printed(report)


def test_a_control_is_never_ranked_nor_the_reference(tmp_path: Path) -> None:
    rows = long_ones_need_the_strong_model()
    store = made(tmp_path, rows, blind=coin(len(rows)), zebra=coin(len(rows), 1))
    report = reported(tmp_path, store)
    assert set(by_apgr(report, "all")) == {"blind", "zebra"}
    assert report["comparisons"]["reference"] == "blind"
    assert set(report["comparisons"]["differences"]) == set(report["thresholds"]) - {"blind"} == {"zebra"}
    table = printed(report)
    assert table.index("always strong") < table.index("control_length") < table.index("control_task") < table.index("does not beat")


def test_the_task_gives_the_mean_label_of_the_train_split_and_of_all_for_a_task_that_is_new() -> None:
    train = pa.table({"task": ["sums", "sums", "facts"], "length": [1, 2, 3], "label": pa.array([0.0, 0.5, 0.75], pa.float32())})
    batch = pa.RecordBatch.from_pydict({"task": ["facts", "code", "sums"], "prompt": ["", "", ""]})
    # (0 + 0.5) / 2 and (0 + 0.5 + 0.75) / 3.
    assert fit_task(train)(batch) == pytest.approx([0.75, 1.25 / 3, 0.25])


def test_a_length_in_the_middle_may_be_the_hard_one() -> None:
    lengths = np.repeat([10, 20, 30], 20)
    train = pa.table({"task": ["sums"] * 60, "length": lengths, "label": pa.array(np.where(lengths == 20, 0.2, 0.9), pa.float32())})
    batch = pa.RecordBatch.from_pydict({"task": ["sums"] * 4, "prompt": ["x" * 9, "ä" * 20, "x" * 30, "x" * 99]})
    assert fit_length(train)(batch) == pytest.approx([0.9, 0.2, 0.9, 0.9], abs=1e-6)


def test_only_the_train_split_is_fitted_on(tmp_path: Path) -> None:
    """The test split says the opposite: short ones need the strong model there."""
    rows = long_ones_need_the_strong_model()
    turned = [{**row, "pass_rate_weak": 1 - row["pass_rate_weak"]} if row["split"] == "test" else row for row in rows]
    store = made(tmp_path, turned, blind=coin(len(rows)))
    assert len(read_train(store.labels())) == 40
    # Exactly the inverse of the oracle's ranking.
    assert reported(tmp_path, store)["routers"]["control_length"]["all"]["apgr"]["value"] == pytest.approx(0.25)


def test_labels_of_the_test_split_alone_leave_the_controls_out_and_say_so(tmp_path: Path) -> None:
    rows = [row for row in long_ones_need_the_strong_model() if row["split"] == "test"]
    store = made(tmp_path, rows, blind=coin(len(rows)))
    report = reported(tmp_path, store)
    assert not any(name.startswith("control") for name in report["routers"])
    assert report["controls"] == {"blind": {}}
    assert "no train split" in report["notices"][0]
    assert store.children("scores") == ["blind"]


def test_controls_that_are_finished_are_kept_until_labels_change(tmp_path: Path) -> None:
    rows = long_ones_need_the_strong_model()
    store = made(tmp_path, rows, blind=coin(len(rows)))
    assert run_controls(config(tmp_path), store).names == ["control_length", "control_task"]
    first = store.scores("control_length").identity()
    run_controls(config(tmp_path), store)
    assert store.scores("control_length").identity() == first
    write(store.labels(), rows[:-3], name="theirs.parquet")
    run_controls(config(tmp_path), store)
    assert store.scores("control_length").identity() != first
    assert len(store.scores("control_length").read()) == len(rows) - 3


def test_they_can_be_switched_off(tmp_path: Path) -> None:
    rows = long_ones_need_the_strong_model()
    store = made(tmp_path, rows, blind=coin(len(rows)), control_length=coin(len(rows)))
    report = reported(tmp_path, store, controls=False)
    assert set(report["routers"]) == {"blind", "random", "oracle"}
    assert report["notices"] == []


def test_what_another_program_wrote_under_a_controls_name_is_that_control(tmp_path: Path) -> None:
    rows = long_ones_need_the_strong_model()
    store = made(tmp_path, rows, blind=coin(len(rows)), control_length=coin(len(rows)))
    report = reported(tmp_path, store)
    assert report["controls"]["blind"]["control_length"]["all"]["value"] == 0  # the same coin
    assert "scores/control_length was written by another program" in report["notices"][0]
    assert store.scores("control_length").state() == "foreign"


def test_controls_alone_are_no_routers_to_report_on(tmp_path: Path) -> None:
    rows = long_ones_need_the_strong_model()
    store = made(tmp_path, rows, control_task=coin(len(rows)))
    with pytest.raises(ArtifactMissing, match="no router under"):
        run_report(config(tmp_path), store)


def test_a_router_of_one_task_is_compared_with_the_controls_on_that_task(tmp_path: Path) -> None:
    rows = long_ones_need_the_strong_model(tasks=("sums", "facts"))
    store = made(tmp_path, rows, soft_block=[row["soft_block"] for row in rows])
    facts = [row for row in rows if row["task"] == "facts"]
    write(store.scores("facts_only"), [{"query_id": row["query_id"], "p_weak": row["soft_block"]} for row in facts])
    report = reported(tmp_path, store)
    assert set(report["controls"]["facts_only"]["control_length"]) == {"all", "facts"}
    assert report["controls"]["facts_only"]["control_length"]["all"]["value"] == 0
    # Of both tasks, though a router of one is compared with it.
    assert report["routers"]["control_length"]["all"]["num_queries"] == 80


@pytest.mark.parametrize("rate", [1.5, float("nan")])
def test_a_rate_of_the_train_split_that_is_none_is_named(tmp_path: Path, rate: float) -> None:
    rows = long_ones_need_the_strong_model()
    rows[0]["pass_rate_weak"] = rate
    store = made(tmp_path, rows, blind=coin(len(rows)))
    with pytest.raises(ArtifactError, match=r"training query q0000 are .* lie in \[0, 1\]"):
        run_report(config(tmp_path), store)
    assert store.children("scores") == ["blind"]


def test_shuffled_labels_are_the_same_labels_in_each_split_in_another_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weak = rng.random(90).astype(np.float32)
    rows = [label_row(i, ("train", "validation", "test")[i % 3], f"{i}", float(w), 1.0) for i, w in enumerate(weak)]
    store = made(tmp_path, rows)
    dealt = shuffled_labels(store.labels(), seed=0)
    assert set(dealt) == {"train", "validation"}
    for start, split in enumerate(dealt):
        # 1 - (1 - weak) * 1 = weak.
        assert np.sort(dealt[split]) == pytest.approx(np.sort(weak[start::3]))
        assert abs(np.corrcoef(dealt[split], weak[start::3])[0, 1]) < 0.5
    assert np.array_equal(shuffled_labels(store.labels(), seed=0)["train"], dealt["train"])
    assert not np.array_equal(shuffled_labels(store.labels(), seed=-1)["train"], dealt["train"])


def test_a_shuffled_control_of_other_labels_is_left_out(tmp_path: Path) -> None:
    rows = long_ones_need_the_strong_model()
    store = made(tmp_path, rows, blind=coin(len(rows)))
    shuffled = store.scores("control_shuffled")
    for prompts, names in ((store.labels().identity(), ["control_length", "control_task", "control_shuffled"]), ("others", None)):
        shuffled.begin({"prompts": prompts})
        with shuffled.writer() as writer:
            writer.write_table(pa.table({"query_id": [r["query_id"] for r in rows], "p_weak": coin(len(rows))}).cast(SCORES))
        shuffled.finish({}, {})
        found = run_controls(config(tmp_path), store)
        assert found.names == (names or ["control_length", "control_task"])
    assert "of other labels" in found.notices[0]


def test_the_columns_are_the_contracts(tmp_path: Path) -> None:
    store = made(tmp_path, long_ones_need_the_strong_model())
    run_controls(config(tmp_path), store)
    for name in ("control_length", "control_task"):
        assert pq.read_schema(next((tmp_path / "scores" / name).glob("*.parquet"))).equals(SCORES)
    assert store.labels().schema == LABELS
