from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow as pa
import pytest
import yaml
from paper_run import write_table
from rich.console import Console
from transformers import AutoModelForCausalLM

from firewall_ray.config.paper import ShapeConfig
from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.errors import ConfigError
from firewall_ray.paper.plan import Plan, make_plan
from firewall_ray.paper.shape import kv_bytes_per_token, memory, num_parameters, shape_of
from firewall_ray.paper.show import print_plan
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import make_query

# The config.json of Llama-3.2-1B and Llama-3.1-70B.
SHAPES: dict[str, dict[str, Any]] = {
    "weak": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "strong": {
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
}
PLAN: dict[str, Any] = {
    "workload": {
        "gsm8k": {"num_train": 7_000, "num_other": 2_000, "prompt_tokens": 60, "completion_tokens": 150},
        "humaneval": {"num_train": 0, "num_other": 200, "prompt_tokens": 150, "completion_tokens": 100},
    },
    "throughput": {
        "weak": {"prompt_tokens_per_s": 50_000, "generated_tokens_per_s": 20_000},
        "strong": {"prompt_tokens_per_s": 4_000, "generated_tokens_per_s": 3_000},
    },
    "shapes": SHAPES,
    "training_queries_per_s": 350,
    "scoring_queries_per_s": 1_000,
}


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    content = {
        "root": str(tmp_path / "run"),
        "queries": {"tasks": {"gsm8k": {}, "humaneval": {}}},
        "models": {
            "weak": {"path": "meta-llama/Llama-3.2-1B", "dtype": "bfloat16", "replicas": {"min": 1, "max": 4}},
            "strong": {"path": "meta-llama/Llama-3.1-70B", "dtype": "bfloat16", "tensor_parallel_size": 4},
        },
        "router": {"designs": ["soft_block", "hard_block"]},
        "baselines": {"names": ["margin_sampling"]},
        "paper": {"plan": PLAN},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_config(path, overrides)


def plan(tmp_path: Path, *overrides: str) -> Plan:
    made = config(tmp_path, *overrides)
    return make_plan(made, ArtifactStore(made.root))


def test_the_parameters_are_those_that_the_models_are_published_with() -> None:
    # 1B: 128,256 * 2,048 embeddings, tied; 16 layers of 2 * 2,048^2 + 2 * 2,048 * 512 + 3 * 2,048 * 8,192 + 2 * 2,048; a last norm.
    assert num_parameters(ShapeConfig(**SHAPES["weak"])) == 262_668_288 + 16 * 60_821_504 + 2_048 == 1_235_814_400
    # 70B: 2 * 128,256 * 8,192; 80 layers of 2 * 8,192^2 + 2 * 8,192 * 1,024 + 3 * 8,192 * 28,672 + 2 * 8,192; a last norm.
    assert num_parameters(ShapeConfig(**SHAPES["strong"])) == 2_101_346_304 + 80 * 855_654_400 + 8_192 == 70_553_706_496


def test_the_parameters_of_the_shipped_models_are_those_that_transformers_counts(tmp_path: Path) -> None:
    model = config(tmp_path, "models.weak.path=quickstart/models/strong").models["weak"]
    assert model.engine == "vllm"
    counted = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained("quickstart/models/strong").parameters())
    assert num_parameters(shape_of("weak", model, None)) == counted


def test_the_70b_on_four_80_gb_gpus(tmp_path: Path) -> None:
    strong, shape = config(tmp_path).models["strong"], ShapeConfig(**SHAPES["strong"])
    assert strong.engine == "vllm"
    assert kv_bytes_per_token(shape, "bfloat16") == 2 * 80 * 8 * 128 * 2 == 327_680
    found = memory(shape, strong, gpu_memory_gb=80)
    assert found["weights_gb"] == pytest.approx(35.28, abs=0.005)  # 70.55e9 * 2 bytes / 4
    assert found["kv_gb"] == pytest.approx(36.72, abs=0.005)  # 0.9 * 80 - 35.28
    assert found["kv_tokens"] == pytest.approx(448_281, abs=1)  # 36.72e9 * 4 / 327,680


def test_the_arithmetic_of_a_1b_and_70b_run(tmp_path: Path) -> None:
    made = plan(tmp_path)
    rows = {row.stage: row for row in made.rows}
    # 9,000 + 200 queries, 32 samples and a greedy answer each.
    assert rows["sample strong"].generations == 9_200 * 33 == 303_600
    # 33 * (9,000 * 150 + 200 * 100) generated; the 32 share a prefill: 2 * (9,000 * 60 + 200 * 150) prompt tokens.
    assert rows["sample strong"].tokens == 33 * 1_370_000 == 45_210_000
    # 1,140,000 / 4,000 + 45,210,000 / 3,000 = 285 + 15,070 s on 4 GPUs; and 22.8 + 2,260.5 s on 1, shared by 4 engines.
    assert rows["sample strong"].device_hours == pytest.approx(15_355 * 4 / 3_600)
    assert rows["sample strong"].wall_hours == pytest.approx(15_355 / 3_600)
    assert rows["sample weak"].device_hours == pytest.approx(2_283.3 / 3_600)
    assert rows["sample weak"].wall_hours == pytest.approx(2_283.3 / 4 / 3_600)
    # 7,000 queries * 10 epochs * 2 designs / 350 a second = 400 s, over 8 workers; 9,200 * 2 / 1,000 = 18.4 s.
    assert rows["train routers"].device_hours == pytest.approx(400 / 3_600)
    assert rows["train routers"].wall_hours == pytest.approx(50 / 3_600)
    assert rows["score routers"].device_hours == pytest.approx(18.4 / 3_600)
    assert made.device_hours("gpu") == pytest.approx((61_420 + 2_283.3 + 400 + 18.4) / 3_600)


def test_the_plan_that_is_printed_shows_its_arithmetic(tmp_path: Path) -> None:
    console = Console(record=True, width=120)
    print_plan(plan(tmp_path), console)
    text = console.export_text()
    for part in (
        "9,200 queries x (32 + 1) = 303,600 generations",
        "33 x (9,000 x 150 of gsm8k + 200 x 100 of humaneval) = 45,210,000 tokens",
        "1,140,000 / 4,000 + 45,210,000 / 3,000 = 15,355 s x 4 GPU = 17.06 h",
        "70,553,706,496 parameters, 35.3 GB of weights on each of 4 GPU",
        "share one prefill",
    ):
        assert part in text


def test_other_pairs_are_sampled_and_other_backbones_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    overrides = [
        "models.weak_3b={path: meta-llama/Llama-3.2-3B}",
        "paper.pairs=[{weak: weak_3b, strong: strong}]",
        "paper.backbones.llama={backbone: {path: meta-llama/Llama-3.2-1B}}",
        "paper.backbone_designs=[soft_block]",
        "paper.plan.throughput.weak_3b={prompt_tokens_per_s: 1, generated_tokens_per_s: 1}",
        f"paper.plan.shapes.weak_3b={SHAPES['weak']}",
    ]
    overrides += [f"paper.plan.workload.{task}.num_test={number}" for task, number in (("gsm8k", 1_500), ("humaneval", 200))]
    rows = {row.stage: row for row in plan(tmp_path, *overrides).rows}
    models, routers = ["weak", "strong", "weak_3b"], ["train routers", "score routers"]
    expected = [f"sample {key}" for key in models] + [f"grade {key}" for key in models]
    assert list(rows) == [*expected, *routers, "train llama", "score llama"]
    # Nothing is trained on Table 2's other pairs: 1,500 + 200 of 9,200 queries.
    assert [rows[f"sample {key}"].queries for key in models] == [9_200, 9_200, 1_700]
    assert rows["sample weak_3b"].tokens == 33 * (1_500 * 150 + 200 * 100)
    assert rows["train llama"].device_hours is None  # neither given nor to be told from its files


def test_a_causal_backbone_has_rates_of_its_own_or_those_of_its_size(tmp_path: Path) -> None:
    tiny = "{path: null, tokenizer: quickstart/models/strong, hidden_size: 64, num_layers: 2, num_heads: 4, intermediate_size: 128}"
    deep = tiny.replace("num_layers: 2", "num_layers: 4").replace("path: null", "path: null, architecture: llama")
    small = tiny.replace("path: null", "path: null, architecture: llama")
    overrides = [f"router.backbone={small}", f"paper.backbones.deep={{backbone: {deep}}}", "paper.backbone_designs=[soft_block]"]
    rows = {row.stage: row for row in plan(tmp_path, *overrides).rows}
    own, other = rows["train routers"].device_hours, rows["train deep"].device_hours
    assert own is not None
    assert other is not None
    # A layer of 4 * 64^2 + 3 * 64 * 128 + 2 * 64 = 41,088; two or four of them, a norm of 64 and a head of 64. One design, not two.
    assert other / (own / 2) == pytest.approx((4 * 41_088 + 128) / (2 * 41_088 + 128))
    rows = {row.stage: row for row in plan(tmp_path, *overrides, "paper.plan.backbones.deep={training_queries_per_s: 100}").rows}
    assert rows["train deep"].device_hours == pytest.approx(7_000 * 10 / 100 / 3_600)


BASELINES = (
    "baselines.names=[knn, routellm_mf, hybrid_llm_det, hybrid_llm_prob, hybrid_llm_trans]",
    "paper.plan.workload.gsm8k.num_test=1500",
    "paper.plan.workload.gsm8k.references=6",
    "paper.plan.baselines={embedding_queries_per_s: 92, bart_score_pairs_per_s: 1000, mf_battles_per_s: 7000}",
)


def test_the_baselines_are_counted(tmp_path: Path) -> None:
    rows = {row.stage: row for row in plan(tmp_path, *BASELINES).rows}
    assert rows["embed"].device_hours == pytest.approx(100 / 3_600)  # 9,200 / 92
    assert rows["train routellm_mf"].device_hours == pytest.approx(200 / 3_600)  # 7,000 x 2 x 100 epochs / 7,000
    assert rows["train routellm_mf"].device == "cpu"
    # Of 7,000 + 500 queries, 4 of their 6 references (bart_score.max_references), 2 models, 10 responses each (hybrid_llm).
    assert "= at most 600,000 pairs" in rows["bart_score"].arithmetic
    assert rows["bart_score"].device_hours == pytest.approx(600 / 3_600)
    # 200 test queries of one reference, and at most 1,000 of the other task's 1,500 (paper.bart_score_queries), of 4 each.
    assert "1,200 queries with 4,200 references x 2 models x 10 responses" in rows["bart_score of test"].arithmetic
    assert rows["train hybrid_llm"].device_hours == pytest.approx(7_000 * 5 * 3 / 350 / 3_600)  # its own 5 epochs
    assert rows["score hybrid_llm"].device_hours == pytest.approx(9_200 * 3 / 1_000 / 3_600)


def test_every_gpu_stage_has_its_price_and_starts_count(tmp_path: Path) -> None:
    made = plan(tmp_path, *BASELINES, "paper.plan.price_per_device_hour=2.5", "paper.plan.start_s=36")
    rows = {row.stage: row for row in made.rows}
    assert rows["sample strong"].price == pytest.approx((15_355 + 36) * 4 / 3_600 * 2.5)
    assert rows["train routers"].price == pytest.approx((400 + 8 * 36) / 3_600 * 2.5)
    assert rows["grade weak"].price is None  # on CPUs
    assert made.price() == pytest.approx(made.device_hours("gpu") * 2.5)
    assert made.summary()["price"] == made.price()
    console = Console(record=True, width=160)
    print_plan(made, console)
    assert "money" in console.export_text()
    assert plan(tmp_path).price() is None


def finish(dataset: Dataset, seconds: float, **counts: int) -> None:
    dataset.begin({})
    start = datetime(2026, 1, 1, tzinfo=UTC)
    times = {"started_at": start.isoformat(), "finished_at": (start + timedelta(seconds=seconds)).isoformat()}
    dataset.write_json("_MANIFEST.json", {**dataset.finish({}, counts), **times})


def test_the_plan_stands_beside_what_finished_stages_took(tmp_path: Path) -> None:
    made = config(tmp_path)
    store = ArtifactStore(made.root)
    for design in ("soft_block", "hard_block"):
        finish(store.scores(design), 46)  # in one pass: 46 seconds, not 92
    rows = {row.stage: row for row in make_plan(made, store).rows}
    assert (rows["score routers"].measured_s, rows["score routers"].ratio) == (46, pytest.approx(1))
    assert rows["train routers"].ratio is None
    assert make_plan(made, store).compared() == (pytest.approx(46), 46)


def test_rates_of_a_small_run_predict_a_large_one(tmp_path: Path) -> None:
    """Three queries took six seconds, and so twice three take twelve."""
    small, large = (ArtifactStore(str(tmp_path / name)) for name in ("small", "run"))
    for store, number in ((small, 3), (large, 6)):
        store.queries().begin({})
        rows = [make_query("gsm8k", "test", f"{i}?", "{}")._asdict() for i in range(number)]
        with store.queries().writer() as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=store.queries().schema))
        store.queries().finish({}, {})
    for design in ("soft_block", "hard_block"):
        finish(small.scores(design), 6)
        finish(large.scores(design), 10)
    made = config(tmp_path, f"paper.plan.rates_from={small.root}")
    row = {row.stage: row for row in make_plan(made, large).rows}["score routers"]
    assert row.device_hours == pytest.approx(12 / 3_600)
    assert row.ratio == pytest.approx(1.2)


def test_what_is_there_takes_the_place_of_what_was_assumed(tmp_path: Path) -> None:
    made = config(tmp_path)
    store = ArtifactStore(made.root)
    queries = store.queries()
    queries.begin({})
    rows = [make_query("gsm8k", split, f"{split}?", "{}") for split in ("train", "validation", "test")]
    with queries.writer() as writer:
        writer.write_table(pa.Table.from_pylist([row._asdict() for row in rows], schema=queries.schema))
    queries.finish({}, {})
    samples = store.samples("strong")
    samples.begin({})
    manifest = samples.finish({}, {"num_rows": 3, "num_errors": 0, "num_sampled_tokens": 1_000})
    manifest |= {"started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:00:10+00:00"}
    samples.write_json("_MANIFEST.json", manifest)
    found = {row.stage: row for row in make_plan(made, store).rows}
    assert found["sample weak"].queries == 3
    assert found["train routers"].queries == 1
    # 33 * 3 * 150 tokens at the 100 a second that were measured.
    assert found["sample strong"].device_hours == pytest.approx(14_850 / 100 * 4 / 3_600)
    assert "measured here" in found["sample strong"].arithmetic


def test_rows_that_an_earlier_job_made_are_not_divided_by_this_jobs_time(tmp_path: Path) -> None:
    """1,000 rows of 50 tokens; the job that finished them made `num_rows_made` in 100 seconds. strong: 4 GPUs an engine."""
    made = config(tmp_path)
    assumed = {row.stage: row for row in plan(tmp_path).rows}["sample strong"].device_hours
    samples = ArtifactStore(made.root).samples("strong")
    samples.begin({})
    counts = {"num_rows": 1_000, "num_errors": 0, "num_sampled_tokens": 50_000}
    manifest = samples.finish({}, counts)
    manifest |= {"started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:01:40+00:00"}

    def hours(**more: int) -> float | None:
        samples.write_json("_MANIFEST.json", {**manifest, "counts": {**counts, **more}})
        return {row.stage: row for row in make_plan(made, ArtifactStore(made.root)).rows}["sample strong"].device_hours

    whole = hours(num_rows_made=1_000)
    assert whole is not None
    assert whole == hours()  # a manifest from before that was counted
    assert hours(num_rows_made=250) == pytest.approx(4 * whole)  # 125 tokens a second, not 500
    assert hours(num_rows_made=5) == assumed  # nothing but the start of an engine


def test_samples_of_another_program_measure_nothing(tmp_path: Path) -> None:
    assumed = plan(tmp_path).rows
    write_table(tmp_path / "run", "samples/strong", pa.table({"query_id": ["a"]}))
    assert plan(tmp_path).rows == assumed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("paper.plan.workload={}", r"paper\.plan\.workload\.gsm8k: missing"),
        ("paper.plan.throughput={}", r"paper\.plan\.throughput\.weak: missing.*--model weak --limit"),
        (
            "models.strong.tensor_parallel_size=1",
            r"models\.strong: 141\.1 GB of weights .*Raise models\.strong\.tensor_par",
        ),
    ],
)
def test_what_is_missing_or_cannot_be_names_its_field(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, override)


def test_a_model_without_files_or_shape_names_its_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"paper\.plan\.shapes\.weak: the config\.json of 'meta-llama/.*Copy its hidden_size"):
        plan(tmp_path, "paper.plan.shapes={}")


def test_rates_that_nobody_knows_leave_the_hours_open(tmp_path: Path) -> None:
    rows = {row.stage: row for row in plan(tmp_path, "paper.plan.training_queries_per_s=null").rows}
    assert rows["train routers"].device_hours is None
    assert "paper.plan.training_queries_per_s is not given" in rows["train routers"].arithmetic


def test_a_model_that_is_bought_needs_no_gpu(tmp_path: Path) -> None:
    made = plan(tmp_path, "models.strong={engine: openai, base_url: https://models.example/v1, model: big}")
    row = {row.stage: row for row in made.rows}["sample strong"]
    assert (row.device, row.device_hours) == ("none", None)
    assert "bought from https://models.example/v1" in row.arithmetic
    assert not [line for line in made.memory if line.startswith("strong")]


@pytest.mark.parametrize("name", ["paper", "paper_mini"])
def test_the_shipped_configs_have_a_plan(name: str, tmp_path: Path) -> None:
    shipped = load_config(f"jobs/configs/{name}.yaml", root=str(tmp_path))
    made = make_plan(shipped, ArtifactStore(shipped.root))
    assert all(row.device_hours is not None for row in made.rows if row.device != "none")  # what is bought has no hours
    assert (made.device_hours("gpu") > 10) == (name == "paper")
