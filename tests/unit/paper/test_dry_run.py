"""jobs/paper.py --dry-run: each fault that a first real run would have met hours later is a line that says wrong."""

from importlib import metadata
from pathlib import Path

import pytest

from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.errors import ConfigError
from firewall_ray.paper import dry_run as module
from firewall_ray.paper.described import described_cluster
from firewall_ray.paper.dry_run import Finding, dry_run
from firewall_ray.store.layout import ArtifactStore

NODE = "{num_cpus: 96, num_gpus: 8, accelerator_types: [A100], gpu_memory_gb: 80, disk_gb: 1000, namespaces: true}"


def paper(tmp_path: Path, *overrides: str) -> RunConfig:
    return load_config("jobs/configs/paper.yaml", overrides, root=str(tmp_path / "run"))


def walked(tmp_path: Path, *overrides: str, node: str = NODE) -> list[Finding]:
    file = tmp_path / "cluster.yaml"
    file.write_text(f"nodes: [{node}]")
    config = paper(tmp_path, *overrides)
    return dry_run(config, ArtifactStore(config.root), described_cluster(str(file)))


def wrong(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state == "wrong"]


def test_the_papers_config_is_right_on_eight_a100s_as_ray_names_them(tmp_path: Path) -> None:
    assert wrong(walked(tmp_path)) == []


def test_the_launcher_file_of_this_repository_has_room_for_the_papers_config(tmp_path: Path) -> None:
    config = paper(tmp_path)
    found = dry_run(config, ArtifactStore(config.root), described_cluster("ray_cluster.yaml"))
    assert [finding for finding in wrong(found) if finding.what.startswith("room")] == []


def test_a_type_of_gpu_that_only_a_hand_gives_is_wrong_and_says_what_is_there(tmp_path: Path) -> None:
    (found,) = wrong(walked(tmp_path, "models.strong.accelerator_type=A100-80G"))
    assert "Accelerator types of its nodes: A100." in found.words
    assert "ask for A100 (models.strong.accelerator_type)" in found.words


def test_nodes_without_namespaces_are_wrong_before_anything_is_sampled(tmp_path: Path) -> None:
    (found,) = wrong(walked(tmp_path, node=NODE.replace("namespaces: true", "namespaces: false")))
    assert found.what == "sandbox"
    assert "grading.humaneval" in found.words


def test_without_a_word_on_namespaces_this_machine_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = NODE.replace(", namespaces: true", "")
    monkeypatch.setattr(module, "refusal", lambda sandbox: "unshare: Operation not permitted")
    (found,) = wrong(walked(tmp_path, node=node))
    assert (found.what, "unshare: Operation not permitted" in found.words) == ("sandbox", True)
    monkeypatch.setattr(module, "refusal", lambda sandbox: None)
    assert [f.state for f in walked(tmp_path, node=node) if f.what == "sandbox"] == ["unknown"]


def test_a_tokenizers_package_that_is_missing_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = metadata.version

    def version(name: str) -> str:
        if name == "sentencepiece":
            raise metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(metadata, "version", version)
    (found,) = wrong(walked(tmp_path))
    assert found.what == "package sentencepiece"
    assert "pip install sentencepiece" in found.words


def test_table_2s_weak_model_is_sampled_on_test_alone(tmp_path: Path) -> None:
    (found,) = [finding for finding in walked(tmp_path) if finding.what == "sampling of weak_3b, Table 2"]
    assert found.words == "6,483 of 34,456 queries, those of test"  # 5,000 + 1,319 + 164 of 25,500 + 8,792 + 164


def test_weights_that_do_not_fit_and_gpus_that_are_smaller_than_said_are_wrong(tmp_path: Path) -> None:
    (found,) = wrong(walked(tmp_path, "models.strong.tensor_parallel_size=1"))
    assert found.what == "models.strong: memory"
    (found,) = wrong(walked(tmp_path, node=NODE.replace("gpu_memory_gb: 80", "gpu_memory_gb: 40")))
    assert found.what == "GPU memory"
    (found,) = wrong(walked(tmp_path, node=NODE.replace("disk_gb: 1000", "disk_gb: 100")))
    assert found.what == "disk of a GPU node"


@pytest.mark.parametrize("path", ["/no/such/folder", "models/of/mine", "-bad-/id"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_wrong(tmp_path: Path, path: str) -> None:
    (found,) = wrong(walked(tmp_path, f"models.weak.path={path}"))
    assert found.what == "models.weak.path"


def test_a_prompt_and_its_answer_that_do_not_fit_the_context_are_wrong(tmp_path: Path) -> None:
    found = wrong(walked(tmp_path, "models.weak.max_model_len=600"))
    assert [finding.what for finding in found] == ["prompt of weak on humaneval"]  # 150 + 512 tokens; gsm8k has 65 + 512


def test_a_description_that_is_none_says_what_one_looks_like(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_cpu.*\n.*It looks like this"):
        walked(tmp_path, node="{num_cpu: 1}")
