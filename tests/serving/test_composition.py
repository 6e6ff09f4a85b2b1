"""How a run's config becomes deployments, and what cannot be served."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_router import write_router

from firewall_ray.config.models import OpenAIModelConfig, VllmModelConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.config.serving import ServingConfig
from firewall_ray.errors import ArtifactMissing, ConfigError
from firewall_ray.router.card import CARD_FILE
from firewall_ray.store.layout import ArtifactStore

# Slow: importing ray.serve.llm loads vLLM. Composing asks Ray for its runtime environment, and without a Ray of the tests' own
# that joins whichever runs on the machine.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

CPU_MODEL = {"path": "quickstart/models/weak", "device": "cpu", "num_cpus": 2, "kv_cache_gib": 1.5}
STRONG = {**CPU_MODEL, "path": "quickstart/models/strong"}


def run_config(root: Path, **changes: Any) -> RunConfig:
    raw = {
        "root": str(root),
        "queries": {"tasks": {"tiny_world": {}}},
        "models": {"weak": CPU_MODEL, "strong": STRONG},
        "serving": {"api_keys": "disabled"},
    }
    return RunConfig.model_validate({**raw, **changes})


def served_model(root: Path, model: dict[str, Any]) -> Any:
    """The LLMConfig of a strong model with these fields."""
    from serve_app.models.deployment import llm_config

    loaded = run_config(root, models={"weak": CPU_MODEL, "strong": model}).models["strong"]
    assert isinstance(loaded, VllmModelConfig)
    return llm_config("strong", loaded, ServingConfig())


def write_router_of(root: Path, strong: str) -> None:
    """A router trained for this strong model and `weak`."""
    store = ArtifactStore(str(root))
    write_router(store, "soft_block")
    card = Path(store.router("soft_block").path) / CARD_FILE
    raw = json.loads(card.read_text())
    card.write_text(json.dumps({**raw, "strong": {**raw["strong"], "key": strong}}))


def test_a_model_on_gpus_asks_for_one_bundle_a_gpu_of_its_kind(tmp_path: Path) -> None:
    model = {"path": "some/model", "tensor_parallel_size": 2, "accelerator_type": "A100-80G", "replicas": {"min": 1, "max": 3}}
    served = served_model(tmp_path, model)
    assert served.model_id == "strong"
    assert served.model_loading_config.model_source == "some/model"
    assert served.get_engine_config().placement_bundles == [{"CPU": 1, "GPU": 1, "accelerator_type:A100-80G": 0.001}] * 2
    assert served.engine_kwargs["gpu_memory_utilization"] == 0.9
    assert served.deployment_config["autoscaling_config"].items() >= {"min_replicas": 1, "max_replicas": 3}.items()
    assert served.runtime_env["env_vars"].keys() == {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"}  # nothing of a CPU's


def test_a_model_on_cpu_gets_its_cache_and_threads_and_no_gpu(tmp_path: Path) -> None:
    served = served_model(tmp_path, CPU_MODEL)
    assert served.get_engine_config().placement_bundles == [{"CPU": 2}]
    assert "gpu_memory_utilization" not in served.engine_kwargs
    # vLLM takes whole GiB: 1.5 rounds up.
    assert served.runtime_env["env_vars"].items() >= {"VLLM_CPU_KVCACHE_SPACE": "2", "OMP_NUM_THREADS": "2"}.items()
    assert Path(served.model_loading_config.model_source).is_absolute()


def test_engine_kwargs_of_the_config_win(tmp_path: Path) -> None:
    model = {**CPU_MODEL, "max_num_seqs": 8, "engine_kwargs": {"max_num_seqs": 4, "enforce_eager": True}}
    kwargs = served_model(tmp_path, model).engine_kwargs
    assert (kwargs["max_num_seqs"], kwargs["enforce_eager"]) == (4, True)


@pytest.mark.parametrize("key", ["firewall", "firewall-0.3", "firewall-7b"])
def test_a_model_cannot_have_the_routers_name(tmp_path: Path, key: str) -> None:
    from serve_app.app import compose

    write_router_of(tmp_path, strong=key)
    with pytest.raises(ConfigError, match=rf"models\.{key}"):
        compose(run_config(tmp_path, models={"weak": CPU_MODEL, key: STRONG}, pair={"strong": key}))


def test_without_a_word_about_keys_nothing_is_served(tmp_path: Path) -> None:
    from serve_app.app import compose

    with pytest.raises(ConfigError, match=r"serving\.api_keys.*api_keys: disabled"):
        compose(run_config(tmp_path, serving={}))


def test_a_run_without_a_router_names_the_job_that_trains_one(tmp_path: Path) -> None:
    from serve_app.app import compose

    with pytest.raises(ArtifactMissing, match="train_router"):
        compose(run_config(tmp_path))


def test_a_router_of_another_pair_is_refused(tmp_path: Path) -> None:
    from serve_app.app import compose

    write_router(ArtifactStore(str(tmp_path)), "soft_block")
    config = run_config(tmp_path, models={"weak": CPU_MODEL, "large": STRONG}, pair={"strong": "large"})
    with pytest.raises(ConfigError, match="trained for weak and strong"):
        compose(config)


def test_a_pair_that_is_not_the_one_on_the_card_is_refused_by_field(tmp_path: Path) -> None:
    from serve_app.app import compose

    write_router(ArtifactStore(str(tmp_path)), "soft_block")
    models = {"weak": CPU_MODEL, "strong": CPU_MODEL}
    with pytest.raises(
        ConfigError, match=r"models\.strong\.path.*'quickstart/models/strong' on the card, 'quickstart/models/weak' in"
    ):
        compose(run_config(tmp_path, models=models))
    compose(run_config(tmp_path, models=models, serving={"api_keys": "disabled", "other_models": "warn"}))


def test_a_base_model_is_served_with_the_papers_prompt_as_its_chat_template(tmp_path: Path) -> None:
    from serve_app.app import compose

    write_router(ArtifactStore(str(tmp_path)), "soft_block")
    models = {"weak": {**CPU_MODEL, "prompt": "raw"}, "strong": {**STRONG, "engine_kwargs": {"reasoning_parser": "qwen3"}}}
    parts = compose(run_config(tmp_path, models=models))._bound_deployment.init_kwargs["models"]
    weak, strong = (parts[route]._bound_deployment.init_kwargs for route in ("weak", "strong"))
    assert (weak["chats"].stop, strong["chats"].stop) == (("\nQuestion:",), ())
    assert "Question: " in weak["llm_config"].get_engine_config().frontend_kwargs["chat_template"]
    assert strong["llm_config"].get_engine_config().frontend_kwargs == {}
    assert strong["llm_config"].get_engine_config().engine_kwargs["reasoning_parser"] == "qwen3"


def test_a_strong_model_bought_elsewhere_needs_no_deployment(tmp_path: Path) -> None:
    """Its key need not be set in the driver: the ingress replicas are where it is read."""
    from serve_app.app import compose

    write_router(ArtifactStore(str(tmp_path)), "soft_block")
    remote = {"engine": "openai", "base_url": "http://localhost:1/v1", "model": "strong", "api_key_env": "NOT_SET_HERE"}
    ingress = compose(run_config(tmp_path, models={"weak": CPU_MODEL, "strong": remote}))
    models = ingress._bound_deployment.init_kwargs["models"]
    assert isinstance(models["strong"], OpenAIModelConfig)
    assert models["weak"]._bound_deployment.name.startswith("ModelServer")


def test_a_price_for_cached_tokens_has_the_engine_say_how_many_there_were(tmp_path: Path) -> None:
    from serve_app.app import compose

    write_router(ArtifactStore(str(tmp_path)), "soft_block")
    prices = {"weak": {"prompt": 1, "completion": 2}, "strong": {"prompt": 1, "completion": 2, "cached_prompt": 0.5}}
    config = run_config(tmp_path, serving={"api_keys": "disabled", "prices": prices})
    models = compose(config)._bound_deployment.init_kwargs["models"]
    says = {
        route: model._bound_deployment.init_kwargs["llm_config"].get_engine_config().frontend_kwargs
        for route, model in models.items()
    }
    assert [says[route].get("enable_prompt_tokens_details") for route in ("weak", "strong")] == [None, True]


def test_a_model_elsewhere_has_no_price_by_the_time_of_gpus(tmp_path: Path) -> None:
    from serve_app.app import compose

    write_router(ArtifactStore(str(tmp_path)), "soft_block")
    remote = {"engine": "openai", "base_url": "http://localhost:1/v1", "model": "strong"}
    serving = {"api_keys": "disabled", "prices": {"weak": {"gpu_second": 1}, "strong": {"gpu_second": 1}}}
    with pytest.raises(ConfigError, match=r"models\.strong is elsewhere"):
        compose(run_config(tmp_path, models={"weak": CPU_MODEL, "strong": remote}, serving=serving))


def test_with_spend_caps_even_one_ingress_replica_has_a_shared_one(tmp_path: Path) -> None:
    from serve_app.app import compose

    write_router(ArtifactStore(str(tmp_path)), "soft_block")
    price = {"prompt": 1, "completion": 2}
    serving = {"api_keys": "disabled", "prices": {"weak": price, "strong": price}, "spend_caps": {"all": {"day": 1}}}
    shared = compose(run_config(tmp_path, serving=serving))._bound_deployment.init_kwargs["shared"]
    (spending,) = shared._bound_deployment.init_args
    assert spending.path == f"{tmp_path}/spending"


def test_every_replica_asks_for_the_resource_of_nodes_that_may_serve(tmp_path: Path) -> None:
    from serve_app.app import compose

    write_router(ArtifactStore(str(tmp_path)), "soft_block")
    serving = {"api_keys": "disabled", "node_resource": "on_demand"}
    ingress = compose(run_config(tmp_path, serving=serving))._bound_deployment
    parts = ingress.init_kwargs
    for deployment in (ingress, parts["router"]._bound_deployment):
        assert deployment.ray_actor_options["resources"] == {"on_demand": 0.001}
    for model in parts["models"].values():
        bundles = model._bound_deployment._replica_config.placement_group_bundles
        assert bundles
        assert all(bundle["on_demand"] == 0.001 for bundle in bundles)


def test_a_served_models_gpus_are_on_one_node_of_its_group_and_pipeline_stages_may_be_on_several(tmp_path: Path) -> None:
    model = {"path": "some/model", "tensor_parallel_size": 4, "node_resource": "large"}
    served = served_model(tmp_path, model).get_engine_config()
    assert served.placement_strategy == "STRICT_PACK"
    assert served.placement_bundles == [{"CPU": 1, "GPU": 1, "large": 0.001}] * 4
    assert served_model(tmp_path, {**model, "pipeline_parallel_size": 2}).get_engine_config().placement_strategy == "PACK"


@pytest.mark.parametrize("args", [{}, {"root": "r"}, {"config": "c", "port": "80"}])
def test_the_application_takes_a_config_and_a_root_and_nothing_else(args: dict[str, str]) -> None:
    from serve_app.app import build_app

    with pytest.raises(ConfigError, match="config=FILE"):
        build_app(args)


def test_the_cluster_config_is_one_that_serve_takes_and_stays_on_loopback() -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load(Path("serve_app/serve_config.yaml").read_text()))
    assert schema.http_options.host == "127.0.0.1"
    (application,) = schema.applications
    assert application.import_path == "serve_app.app:build_app"
    assert Path(application.args["config"]).is_file()
