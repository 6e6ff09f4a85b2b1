"""A decision log, labels, routers and a file of Serve for the tests of relabelling, by hand."""

from typing import Any

import pyarrow as pa
from handmade import write
from ray.serve.schema import ServeDeploySchema
from tiny_router import make_card

from firewall_ray.config.router import RouterConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.config.serve_file import ServeFile
from firewall_ray.relabel.stores import RoundStore
from firewall_ray.router.card import CARD_FILE
from firewall_ray.schemas import LABEL_DESIGNS, PROMPT_TEMPLATE
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import prompt_id
from serve_app.deploy import SERVE_CONFIG, read_serve_config
from serve_app.routing.arms import RouterUserConfig

LOG = pa.schema([("query_id", pa.string()), ("text", pa.string())])


def chat(question: str) -> tuple[str, str]:
    """query_id and text of a logged chat."""
    return prompt_id(PROMPT_TEMPLATE.format(question=question)), question


def label(query_id: str, prompt: str, split: str = "train", weak: float = 0.0, strong: float = 1.0) -> dict[str, Any]:
    row = {"query_id": query_id, "task": "tiny_world", "split": split, "prompt": prompt, "num_samples": 4}
    row |= {"pass_rate_weak": weak, "pass_rate_strong": strong, "greedy_weak": weak == 1, "greedy_strong": strong == 1}
    return {**row, **dict.fromkeys(LABEL_DESIGNS, 1 - (1 - weak) * strong)}


def log(store: ArtifactStore, *rows: tuple[str, str | None], name: str = "theirs.parquet") -> None:
    write(store.decisions(), [{"query_id": query_id, "text": text} for query_id, text in rows], name, LOG)


def drawn_questions(round_store: RoundStore) -> set[str]:
    return set(round_store.drawn().read()["question"].to_pylist())


def finish_labels(store: ArtifactStore, rows: list[dict[str, Any]], weak: str = "weak") -> None:
    labels = store.labels()
    labels.begin({"weak": weak, "strong": "strong"})
    write(labels, rows)
    labels.finish({}, {})


def put_router(store: ArtifactStore, name: str) -> None:
    router = store.router(name)
    router.begin({})
    router.write_bytes(CARD_FILE, make_card(RouterConfig()).model_dump_json().encode())
    router.finish({}, {})


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
