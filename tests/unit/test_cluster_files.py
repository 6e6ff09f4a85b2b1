"""ray_cluster.yaml and deploy/kuberay, against Ray's, AWS' and Kubernetes' own schemas, and against what our jobs ask for."""

import copy
import functools
import gzip
import json
import logging
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.serve.schema import ServeDeploySchema
from ray.util.accelerators import accelerators

from firewall_ray.config.models import VllmModelConfig
from firewall_ray.config.run import load_config
from firewall_ray.config.serving import ServingConfig
from firewall_ray.engines.placement import engine_bundles
from serve_app.serve_settings import SETTINGS

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "jobs/configs/paper.yaml"
KUBERAY = {"RayCluster": "ray_cluster.yaml", "RayJob": "ray_job.yaml", "RayService": "ray_service.yaml"}
ON_DEMAND = ServingConfig(node_resource="on_demand").node_resources


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def manifest(kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents(ROOT / "deploy/kuberay" / KUBERAY[kind]) if document["kind"] == kind)
    return found


def cluster_of(kind: str) -> dict[str, Any]:
    spec = manifest(kind)["spec"]
    return {"RayCluster": spec, "RayJob": spec.get("rayClusterSpec"), "RayService": spec.get("rayClusterConfig")}[kind]


def pods_of(kind: str) -> dict[str, dict[str, Any]]:
    cluster = cluster_of(kind)
    return {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in cluster["workerGroupSpecs"]}}


# ray up --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    return launched((ROOT / "ray_cluster.yaml").read_text())


def launched(text: str) -> dict[str, Any]:
    """As `ray up` prepares the file before it speaks to AWS. Raises what Ray raises for a file that is wrong."""
    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


def with_one_gpu(text: str) -> str:
    """The file with its commented node type of one GPU in force."""
    lines = text.splitlines(keepends=True)
    start = lines.index("  # l40s:\n")
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("  # "))
    return "".join([*lines[:start], *(line.replace("  # ", "  ", 1) for line in lines[start:end]), *lines[end:]])


def brought_up(config: dict[str, Any], *demands: dict[str, float]) -> dict[str, int]:
    """The nodes that Ray's autoscaler starts for these, from none; all of them must find a place."""
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs(),
        max_num_nodes=config["max_workers"],
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand) for demand in demands]),
    )
    reply = ResourceDemandScheduler(AutoscalerEventLogger(logging.getLogger(__name__))).schedule(request)
    assert not reply.infeasible_resource_requests, f"no node for {reply.infeasible_resource_requests}"
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def together(bundles: list[dict[str, float]]) -> dict[str, float]:
    """The demand of a STRICT_PACK group: one node has to hold all of it."""
    return {name: sum(bundle.get(name, 0) for bundle in bundles) for name in {name for bundle in bundles for name in bundle}}


def engines(key: str) -> list[dict[str, float]]:
    """What the engines of one of the paper's models ask for, at most."""
    model = load_config(PAPER).models[key]
    assert isinstance(model, VllmModelConfig)
    return [together(engine_bundles(model))] * model.replicas.max


def test_rays_schema_accepts_the_cluster_and_refuses_a_typo_in_it(launcher: dict[str, Any]) -> None:
    typo = copy.deepcopy(launcher)
    typo["available_node_types"]["cpu"]["max_wokers"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        validate_config(typo)


def test_aws_knows_every_field_of_every_node_type(launcher: dict[str, Any]) -> None:
    operation = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")
    for name, node_type in launcher["available_node_types"].items():
        request = {"MinCount": 1, "MaxCount": 1, **node_type["node_config"]}
        report = ParamValidator().validate(request, operation.input_shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_the_head_runs_no_work(launcher: dict[str, Any]) -> None:
    assert launcher["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert brought_up(launcher, {"CPU": 1}) == {"cpu": 1}


def test_spot_nodes_lack_the_resource_of_serving_and_only_they_are_spot(launcher: dict[str, Any]) -> None:
    spot = {name for name, node in launcher["available_node_types"].items() if "InstanceMarketOptions" in node["node_config"]}
    lacking = {name for name, node in launcher["available_node_types"].items() if "on_demand" not in node["resources"]}
    assert (spot, lacking) == ({"a100_spot"}, {"a100_spot", "head"})


def test_samplers_bring_up_spot_nodes_and_replicas_never_do(launcher: dict[str, Any]) -> None:
    assert brought_up(launcher, *engines("strong")) == {"a100_spot": 1}
    assert brought_up(launcher, *engines("weak")) == {"a100_spot": 1}
    # ray.serve.llm adds the replica's own CPU to the first bundle.
    replica = {**engines("strong")[0], **ON_DEMAND}
    assert brought_up(launcher, replica) == {"a100": 1}
    assert brought_up(launcher, {"CPU": 1, **ON_DEMAND}) == {"cpu": 1}  # ingress


def test_the_papers_pair_and_its_training_fill_one_node_of_eight_gpus(launcher: dict[str, Any]) -> None:
    pair = [*engines("weak"), *engines("strong")]
    assert sum(demand["GPU"] for demand in pair) == 8  # 4 x 1 + 1 x 4
    assert brought_up(launcher, *pair) == {"a100_spot": 1}
    training = load_config(PAPER).router
    worker = {"CPU": 1, "GPU": 1, f"accelerator_type:{training.accelerator_type}": 0.001}
    assert brought_up(launcher, *[worker] * training.num_workers) == {"a100_spot": 1}


def test_the_single_gpu_node_type_is_valid_once_uncommented() -> None:
    config = launched(with_one_gpu((ROOT / "ray_cluster.yaml").read_text()))
    for name in ("a100", "a100_spot"):
        config["available_node_types"][name]["max_workers"] = 0
    assert brought_up(config, {"CPU": 2, "GPU": 1}, {"CPU": 2, "GPU": 1, **ON_DEMAND}) == {"l40s": 2}


def test_accelerator_types_are_names_that_ray_knows(launcher: dict[str, Any]) -> None:
    text = with_one_gpu((ROOT / "ray_cluster.yaml").read_text())
    known = {value for name, value in vars(accelerators).items() if name.isupper()}
    assert set(re.findall(r'"accelerator_type:([^"\\]+)', text)) == {"A100", "A100-80G", "L40S"} <= known


def test_the_limit_of_nodes_holds_all_types(launcher: dict[str, Any]) -> None:
    assert sum(node.get("max_workers", 0) for node in launcher["available_node_types"].values()) == launcher["max_workers"]


def test_every_node_starts_with_token_authentication_and_serves_settings(launcher: dict[str, Any]) -> None:
    for role in ("head", "worker"):
        (start,) = (command for command in launcher[f"{role}_start_ray_commands"] if "ray start" in command)
        words = shlex.split(start)
        settings = {f"{name}={value}" for name, value in SETTINGS.items()}
        assert {"RAY_AUTH_MODE=token", *settings} <= set(words[: next(i for i, word in enumerate(words) if word.endswith("/ray"))])
    assert "/home/ubuntu/.ray/auth_token" in launcher["file_mounts"]


def test_the_dashboard_listens_to_the_head_alone_and_no_group_is_made_by_ray(launcher: dict[str, Any]) -> None:
    starts = [command for command in launcher["head_start_ray_commands"] if "ray start" in command]
    assert all("--dashboard-host=127.0.0.1" in command.split() for command in starts)
    # Ray's own group opens port 22 to 0.0.0.0/0; it makes none for node types that name theirs.
    assert all(node["node_config"]["SecurityGroupIds"] for node in launcher["available_node_types"].values())
    assert "security_group" not in launcher["provider"]


def test_what_is_copied_to_the_nodes_is_all_that_installing_needs(launcher: dict[str, Any]) -> None:
    local = [source for source in launcher["file_mounts"].values() if not source.startswith("~")]
    assert all((ROOT / source).exists() for source in local)
    pyproject = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"^include = \[(.*)\]$", pyproject, re.MULTILINE)
    assert packages is not None
    assert {"pyproject.toml", "README.md", *re.findall(r'"(\w+)\*"', packages.group(1))} == set(local)
    assert any("firewall-ray[gpu]" in command for command in launcher["setup_commands"])
    assert re.search(r"^gpu = ", pyproject, re.MULTILINE)


@pytest.mark.parametrize("name", ["setup_commands", "head_start_ray_commands", "worker_start_ray_commands"])
def test_every_command_is_one_that_bash_can_read(launcher: dict[str, Any], name: str) -> None:
    for command in launcher[name]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


# KubeRay -------------------------------------------------------------------------------------------------------------


@functools.cache
def schema_of(kind: str, shared_data: Path) -> jsonschema.Draft202012Validator:
    path = shared_data / "kuberay_crds" / f"ray.io_{kind.lower()}s.yaml.gz"
    definition = yaml.load(gzip.decompress(path.read_bytes()), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (version for version in definition["spec"]["versions"] if version["name"] == "v1")
    # jsonschema.validate would first hold the schema itself, thousands of fields, to its meta-schema.
    return jsonschema.Draft202012Validator(_closed(version["schema"]["openAPIV3Schema"]))


def _closed(schema: Any) -> Any:
    """Kubernetes drops fields that the schema does not know without a word; here they are refused."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not is_open:
        closed["additionalProperties"] = False
    return closed


@pytest.mark.parametrize("kind", KUBERAY)
def test_the_published_schema_accepts_the_manifest_and_refuses_typos_in_it(kind: str, shared_data: Path) -> None:
    schema, found = schema_of(kind, shared_data), manifest(kind)
    schema.validate(found)
    for typo in ("rayVersoin", "workerGroupSpecs.0.template.spec.containers.0.imgae"):
        with pytest.raises(jsonschema.ValidationError, match=typo.split(".")[-1]):
            schema.validate(_with(found, kind, typo))


def _with(found: dict[str, Any], kind: str, path: str) -> dict[str, Any]:
    """A copy with a field that nobody knows, in its cluster's spec or below."""
    changed = json.loads(json.dumps(found))  # aliases of one YAML anchor become values of their own
    section = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}[kind]
    node = changed["spec"] if section is None else changed["spec"][section]
    *parents, last = path.split(".")
    for key in parents:
        node = node[int(key)] if key.isdigit() else node[key]
    node[last] = "x"
    return changed


@pytest.mark.parametrize("kind", KUBERAY)
def test_every_cluster_on_kubernetes_asks_for_a_token_and_scales(kind: str) -> None:
    cluster = cluster_of(kind)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "firewall-ray-token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert all(g["minReplicas"] <= g["replicas"] <= g["maxReplicas"] for g in cluster["workerGroupSpecs"])
    assert f"ray[llm]=={cluster['rayVersion']}" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("kind", KUBERAY)
def test_pods_hold_what_their_ray_promises(kind: str) -> None:
    pods = pods_of(kind)
    assert pods["head"]["rayStartParams"] == {"num-cpus": "0"}
    for name, pod in pods.items():
        (container,) = pod["template"]["spec"]["containers"]
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert requests["memory"] == limits["memory"]
        assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu") == ("8" if "a100" in name else None)
        if name != "head":
            assert pod["rayStartParams"]["num-cpus"] == requests["cpu"]
        assert {mount["name"] for mount in container.get("volumeMounts", [])} == {
            volume["name"] for volume in pod["template"]["spec"].get("volumes", [])
        }
        if "a100" in name:  # KubeRay pastes the value into a shell's command: JSON in quotes of its own
            (resources,) = shlex.split(pod["rayStartParams"]["resources"])
            assert json.loads(resources)["accelerator_type:A100-80G"] == 1


def test_spot_is_for_samplers_alone_on_kubernetes() -> None:
    def capacity(group: dict[str, Any]) -> str | None:
        return group["template"]["spec"].get("nodeSelector", {}).get("karpenter.sh/capacity-type")

    shared = pods_of("RayCluster")
    assert {name for name, pod in shared.items() if capacity(pod) == "spot"} == {"a100-spot"}
    assert {name for name, pod in shared.items() if "on_demand" in pod["rayStartParams"].get("resources", "")} == {"cpu", "a100"}
    assert not [name for name, pod in pods_of("RayService").items() if capacity(pod) == "spot"]


def test_the_jobs_entrypoint_is_a_command_that_exists_with_a_config_that_loads() -> None:
    program, script, *flags = shlex.split(manifest("RayJob")["spec"]["entrypoint"])
    options = dict(zip(flags[::2], flags[1::2], strict=True))
    assert program == "python"
    assert (ROOT / Path(script).relative_to("/opt/firewall-ray")).is_file()
    assert set(options) == {"--config", "--root"}
    config = load_config(ROOT / Path(options["--config"]).relative_to("/opt/firewall-ray"), root=options["--root"])
    assert config.root.startswith("s3://")


def test_the_image_has_what_the_manifests_name() -> None:
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    for name in ("firewall_ray", "serve_app", "jobs"):
        assert f"{name} /opt/firewall-ray/{name}\n" in dockerfile
    assert f"rayproject/ray:{cluster_of('RayJob')['rayVersion']}-py311" in dockerfile


def test_the_served_application_is_one_that_ray_and_the_config_loader_accept(tmp_path: Path) -> None:
    served = ServeDeploySchema.model_validate(yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"]))
    (application,) = served.applications
    assert application.import_path == "serve_app.app:build_app"
    assert application.runtime_env["env_vars"] == SETTINGS
    (config_map,) = (d for d in documents(ROOT / "deploy/kuberay/ray_service.yaml") if d["kind"] == "ConfigMap")
    folder, name = os.path.split(application.args["config"])
    (tmp_path / name).write_text(config_map["data"][name])
    config = load_config(tmp_path / name)
    assert isinstance(config.serving.api_keys, list)
    for pod in pods_of("RayService").values():
        spec = pod["template"]["spec"]
        (volume,) = (volume for volume in spec["volumes"] if volume.get("configMap") == {"name": config_map["metadata"]["name"]})
        assert {"name": volume["name"], "mountPath": folder} in spec["containers"][0]["volumeMounts"]


@pytest.mark.parametrize(
    ("well", "was_ready", "joins"),
    [
        ((), False, False),
        (("/health",), False, False),  # models are loading
        (("/health", "/ready"), False, True),
        (("/health",), True, True),  # a model died: the other one answers
        ((), True, False),  # the ingress died
    ],
)
def test_a_pod_gets_traffic_once_all_was_ready_and_while_the_ingress_is_well(
    well: tuple[str, ...], was_ready: bool, joins: bool, tmp_path: Path
) -> None:
    worker = pods_of("RayService")["a100"]["template"]["spec"]["containers"][0]
    *shell, script = worker["readinessProbe"]["exec"]["command"]
    marker, wget = tmp_path / "was-ready", tmp_path / "wget"
    wget.write_text(
        '#!/bin/bash\nfor url; do :; done\ncase "$url" in ' + "".join(f"*:8000{p}) exit 0;; " for p in well) + "esac\nexit 4\n"
    )
    wget.chmod(0o755)
    if was_ready:
        marker.touch()
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run([*shell, script.replace("/tmp/was-ready", str(marker))], env=environment, check=False)
    assert (result.returncode == 0) is joins
