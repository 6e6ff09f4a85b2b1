"""The config walked without running anything: what a real run would fail of, before it costs an hour.

Runs in the driver, without GPUs, hub or weights. Each check says ok, wrong, or that it cannot be known from here.
"""

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from firewall_ray.baselines.run import ON_EMBEDDINGS
from firewall_ray.cluster.room import Need, actors_need, lack_of_room
from firewall_ray.config.models import OpenAIModelConfig, VllmModelConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.engines.room import engine_need
from firewall_ray.errors import ConfigError, FirewallRayError
from firewall_ray.paper.described import Cluster
from firewall_ray.paper.plan import memory_lines
from firewall_ray.paper.shape import BYTES, num_parameters
from firewall_ray.paper.variants import other_models
from firewall_ray.paper.work import num_queries, splits_of, workload
from firewall_ray.stages.needs import training_need
from firewall_ray.stages.sample import sampling_spec
from firewall_ray.stages.sandbox_room import check_sandboxes, refusal, sandboxes
from firewall_ray.store.layout import ArtifactStore

State = Literal["ok", "wrong", "unknown"]
TOKENIZER_PACKAGES = ("sentencepiece", "protobuf")  # DeBERTa-v3 publishes a SentencePiece model and no tokenizer.json
BYTES_A_TOKEN = 4  # of English text, in UTF-8


class Finding(NamedTuple):
    """One line of the checklist. words: what was found, and where it is wrong, what mends it."""

    what: str
    state: State
    words: str


def dry_run(config: RunConfig, store: ArtifactStore, cluster: Cluster) -> list[Finding]:
    """All checks, in the order in which a run would come to them."""
    checks = (_packages, _paths, _keys, _memory, _prompts, _splits)
    found = [Finding("config", "ok", "every field is known and fits the others")]
    for check in checks:
        found += check(config, store)
    return [
        *found,
        *_room(config, cluster),
        *_gpu_memory(config, cluster),
        *_sandbox(config, cluster),
        *_disk(config, store, cluster),
    ]


# What the config names -----------------------------------------------------------------------------------------------


def _packages(config: RunConfig, store: ArtifactStore) -> Iterator[Finding]:
    for name in TOKENIZER_PACKAGES:
        try:
            yield Finding(f"package {name}", "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            words = f"not installed, and the tokenizer of DeBERTa-v3 cannot be read without it: pip install {name}, on every node"
            yield Finding(f"package {name}", "wrong", words)


def _paths(config: RunConfig, store: ArtifactStore) -> Iterator[Finding]:
    """Folders that must be there, and hub ids, of which the form alone can be told from here."""
    named = {f"models.{key}.path": model.path for key, model in config.models.items() if isinstance(model, VllmModelConfig)}
    backbones = {"router.backbone": config.router.backbone}
    backbones |= {f"paper.backbones.{name}.backbone": each.backbone for name, each in config.paper.backbones.items()}
    for field, backbone in backbones.items():
        named |= {f"{field}.{part}": path for part in ("path", "tokenizer") if (path := getattr(backbone, part)) is not None}
    baselines = config.baselines
    if any(name.startswith("hybrid_llm") for name in baselines.names):
        bart = baselines.bart_score
        named |= {
            f"baselines.bart_score.{part}": path for part in ("path", "tokenizer") if (path := getattr(bart, part)) is not None
        }
    if baselines.embedding.sentence_transformer is not None:
        named["baselines.embedding.sentence_transformer"] = baselines.embedding.sentence_transformer
    if "routellm_mf_published" in baselines.names:
        named["baselines.routellm_mf_published.weights"] = baselines.routellm_mf_published.weights
    tasks = config.queries.tasks.options() if config.queries.tasks else {}
    named |= {f"queries.tasks.{name}.source": options["source"] for name, options in tasks.items() if "source" in options}
    for field, path in named.items():
        yield Finding(field, *_path(path))


def _path(path: str) -> tuple[State, str]:
    if Path(path).expanduser().exists():
        return "ok", f"{path} is here; every node must see it under the same path"
    if path.startswith(("/", "~", ".")) or path.count("/") > 1:
        return "wrong", f"there is no file or folder {path}"
    try:
        validate_repo_id(path)
    except HFValidationError as e:
        return "wrong", f"{path!r} is neither a folder that is here nor a hub id: {str(e).splitlines()[0]}"
    return "unknown", f"{path} has the form of a hub id; whether it is there, and open to you: hf download {path} --dry-run"


def _keys(config: RunConfig, store: ArtifactStore) -> Iterator[Finding]:
    """Environment variables with keys, which the driver reads."""
    named = {f"models.{key}": m.api_key_env for key, m in config.models.items() if isinstance(m, OpenAIModelConfig)}
    if config.baselines.embedding.openai is not None:
        named["baselines.embedding.openai"] = config.baselines.embedding.openai.api_key_env
    for field, variable in named.items():
        if variable is not None:
            words = (
                f"{variable} is set here" if variable in os.environ else f"{variable} is not set here; the run's driver needs it"
            )
            yield Finding(f"{field}.api_key_env", "ok" if variable in os.environ else "unknown", words)


def _memory(config: RunConfig, store: ArtifactStore) -> Iterator[Finding]:
    tasks = workload(config, store)
    for key in (config.pair.weak, config.pair.strong, *other_models(config)):
        try:
            for line in memory_lines(config, [key], tasks):
                yield Finding(f"models.{key}: memory", "ok", line.partition(": ")[2])
        except ConfigError as e:
            # Of a shape that nobody gives and no file here has, nothing is known; weights that do not fit are wrong.
            yield Finding(f"models.{key}: memory", "unknown" if "paper.plan.shapes" in str(e) else "wrong", str(e))


def _prompts(config: RunConfig, store: ArtifactStore) -> Iterator[Finding]:
    """How each model is asked on each task: format, stop strings, limit, and whether both fit into its context."""
    tasks = workload(config, store)
    for key in (config.pair.weak, config.pair.strong, *other_models(config)):
        model = config.models[key]
        is_chat = model.prompt == "chat" or (
            model.prompt == "auto" and isinstance(model, OpenAIModelConfig) and model.api == "chat"
        )
        if isinstance(model, VllmModelConfig) and model.prompt == "auto":
            words = "auto: chat where its tokenizer has a chat template. A base model has none; to be sure set prompt: raw"
            yield Finding(f"models.{key}.prompt", "unknown", words)
        spec = sampling_spec(config, set(tasks), PromptFormat(is_chat))
        context = model.max_model_len if isinstance(model, VllmModelConfig) else None
        for name, task in tasks.items():
            limit, stop = spec.max_tokens[name], spec.stop[name]
            words = (
                f"{'chat' if is_chat else 'raw'}, about {task.prompt_tokens:g} tokens; at most {limit} more, stop {list(stop)!r}"
            )
            if context is not None and task.prompt_tokens + limit > context:
                words += f": more than models.{key}.max_model_len, {context}; answers would be cut off there"
                yield Finding(f"prompt of {key} on {name}", "wrong", words)
            else:
                yield Finding(f"prompt of {key} on {name}", "ok", words)


def _splits(config: RunConfig, store: ArtifactStore) -> Iterator[Finding]:
    tasks = workload(config, store)
    for key in other_models(config):
        splits = splits_of(config, key)
        words = f"{num_queries(tasks, splits):,} of {num_queries(tasks):,} queries, those of {', '.join(splits)}"
        yield Finding(f"sampling of {key}, Table 2", "ok", words)


# The cluster ---------------------------------------------------------------------------------------------------------


def _room(config: RunConfig, cluster: Cluster) -> Iterator[Finding]:
    for need in needs(config):
        lack = lack_of_room(need, cluster.resources)
        words = str(need) if lack is None else f"{lack} Change what it takes: {', '.join(need.fields)}."
        yield Finding(f"room on {cluster.name}", "ok" if lack is None else "wrong", words)


def needs(config: RunConfig) -> list[Need]:
    """Of everything that starts actors or workers in a run of the paper."""
    models = (config.pair.weak, config.pair.strong, *other_models(config))
    found = [engine_need(key, config.models[key]) for key in models]
    # Backbones differ in what they train, not in where.
    found += [training_need(config.router), actors_need("scoring", config.scoring)]
    names = set(config.baselines.names)
    if set(ON_EMBEDDINGS) & names and config.baselines.embedding.openai is None:
        found.append(actors_need("baselines.embedding", config.baselines.embedding))
    if any(name.startswith("hybrid_llm") for name in names):
        found.append(actors_need("baselines.bart_score", config.baselines.bart_score))
    return found


def _gpu_memory(config: RunConfig, cluster: Cluster) -> Iterator[Finding]:
    """The plan reckons with one size of GPU; the nodes may have another."""
    assumed = config.paper.plan.gpu_memory_gb
    field = f"paper.plan.gpu_memory_gb is {assumed:g}"
    said = [kind for kind in cluster.kinds if kind.num_gpus]
    for kind in said:
        if kind.gpu_memory_gb is None:
            continue
        words = f"{field}, the GPUs of {cluster.name} have {kind.gpu_memory_gb:g}"
        yield Finding("GPU memory", "ok" if kind.gpu_memory_gb >= assumed else "wrong", words)
    if any(kind.gpu_memory_gb is None for kind in said) or (not cluster.kinds and any(n.get("GPU") for n in cluster.resources)):
        words = f"{field}; Ray does not say what its nodes have, and an A100 may have 40 or 80: look at nvidia-smi"
        yield Finding("GPU memory", "unknown", words)


def _sandbox(config: RunConfig, cluster: Cluster) -> Iterator[Finding]:
    """Where the cluster runs its nodes are asked; else this machine, unless the description says it."""
    wanted = sandboxes(config)
    if wanted and cluster.runs:
        try:
            check_sandboxes(config)
            yield Finding("sandbox", "ok", "every node with CPUs runs a program in it")
        except FirewallRayError as e:
            yield Finding("sandbox", "wrong", str(e))
        return
    said = [kind.namespaces for kind in cluster.kinds if kind.num_cpus]
    for section, sandbox in wanted.items():
        if False in said and sandbox.isolation == "required":
            words = f"{section}.isolation is required, and nodes of {cluster.name} have namespaces: false. Let their "
            words += "containers unshare and mount (docs/cluster.md), or take unsafe, only for completions that you trust"
            yield Finding("sandbox", "wrong", words)
        elif said and all(said):
            yield Finding("sandbox", "ok", f"{section}: all nodes of {cluster.name} have namespaces: true")
        elif (reason := refusal(sandbox)) is not None:
            words = (
                f"{section}: this machine refuses. {reason} Where the cluster's nodes differ: namespaces: true in --cluster FILE"
            )
            yield Finding("sandbox", "wrong", words)
        else:
            yield Finding(
                "sandbox", "unknown", f"{section}: this machine runs programs in it; nodes are asked before sampling begins"
            )


def _disk(config: RunConfig, store: ArtifactStore, cluster: Cluster) -> Iterator[Finding]:
    """Weights on every node that loads them, and samples under ROOT; routers and caches are left out."""
    models = (config.pair.weak, config.pair.strong, *other_models(config))
    shapes, tasks = config.paper.plan.shapes, workload(config, store)
    ours = {key: model for key in models if isinstance(model := config.models[key], VllmModelConfig) and key in shapes}
    weights = {key: num_parameters(shapes[key]) * BYTES[model.dtype] / 1e9 for key, model in ours.items()}
    total = sum(weights.values())
    if weights:
        words = f"{total:,.0f} GB of weights ({', '.join(f'{key} {gb:,.0f}' for key, gb in weights.items())})"
        small = [kind.disk_gb for kind in cluster.kinds if kind.num_gpus and kind.disk_gb is not None and kind.disk_gb < total]
        known = bool(cluster.kinds) and all(kind.disk_gb is not None for kind in cluster.kinds if kind.num_gpus)
        if small:
            yield Finding("disk of a GPU node", "wrong", f"{words}, and nodes of {cluster.name} have {min(small):,.0f} GB")
        else:
            yield Finding("disk of a GPU node", "ok" if known else "unknown", words)
    n = config.sampling.num_samples
    every = [(task, splits_of(config, key)) for key in models for task in tasks.values()]
    size_gb = sum((n + 1) * task.num_queries(splits) * task.completion_tokens for task, splits in every) * BYTES_A_TOKEN / 1e9
    yield Finding("disk of ROOT", "unknown", f"about {size_gb:,.2f} GB of samples, before compression, at {config.root}")
