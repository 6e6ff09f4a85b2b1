"""routers/ and the pair's models -> an OpenAI-compatible endpoint on this machine: python -m serve_app --config FILE"""

import json
import logging
import signal
import threading
from typing import Annotated

import typer

from firewall_ray.cli import ConfigOption, RootOption, SetOption, job
from firewall_ray.cluster.display import console
from serve_app import serve_settings
from serve_app.outages import say_outages

HostOption = Annotated[str, typer.Option("--host", help="Address to bind. 0.0.0.0 opens it to the network: see serving.api_keys.")]
PortOption = Annotated[int, typer.Option("--port", min=1, max=65_535)]

logger = logging.getLogger("firewall_ray")


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, host: HostOption = "127.0.0.1", port: PortOption = 8000
) -> None:
    """Serve the router and its pair of models until Ctrl-C. Starting two engines takes minutes on a small machine."""
    serve_settings.apply()
    with job("serve", config, root, set_, needs_ray=True, writes=[]) as context:
        logger.info("serve: starting router, weak and strong model ...")
        from ray import serve  # Seconds to import: --help and a wrong config answer at once.

        from serve_app.app import compose

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options={"host": host, "port": port})
        serve.run(compose(context.config), name="firewall", route_prefix="/")
        # Not through logging: importing ray.serve.llm has put JSON into its place.
        console.print(f"serve: up. Try:\n{curl_line(host, port)}", markup=False, highlight=False, soft_wrap=True)
        threading.Thread(target=say_outages, args=("firewall", _say), daemon=True).start()
        signal.pause()


def _say(line: str) -> None:
    console.print(f"serve: {line}", markup=False, highlight=False, soft_wrap=True)


def curl_line(host: str, port: int) -> str:
    """A request to paste into a shell."""
    body = json.dumps({"model": "firewall", "messages": [{"role": "user", "content": "What is the capital of Docenyx?"}]})
    return f"curl -i http://{host}:{port}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"


if __name__ == "__main__":
    typer.run(main)
