"""routers/ and the pair's models -> an OpenAI-compatible endpoint on this machine: python -m serve_app --config FILE"""

import json
import logging
import signal
import sys
import threading
import time
from ipaddress import ip_address
from typing import Annotated

import typer

from firewall_ray.cli import ConfigOption, RootOption, SetOption, job, run
from firewall_ray.cluster.display import console
from firewall_ray.config.serving import ServingConfig
from firewall_ray.errors import ConfigError
from serve_app import serve_settings
from serve_app.outages import say_outages

HostOption = Annotated[str, typer.Option("--host", help="Address to bind. 0.0.0.0 opens it to the network: see serving.api_keys.")]
PortOption = Annotated[int, typer.Option("--port", min=1, max=65_535)]

APPLICATION = "firewall"
READY_S = 60.0
POLL_S = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger("firewall_ray")


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, host: HostOption = "127.0.0.1", port: PortOption = 8000
) -> None:
    """Serve the router and its pair of models until Ctrl-C. Starting two engines takes minutes on a small machine.

    Ctrl-C, or SIGTERM, lets no request in any more, waits for the answers under way and ends. A second one does not wait.
    """
    serve_settings.apply()
    end_at_once_on_signals()
    with job("serve", config, root, set_, needs_ray=True, writes=[]) as context:
        check_host(host, context.config.serving)
        logger.info("serve: starting router, weak and strong model ...")
        from ray import serve  # Seconds to import: --help and a wrong config answer at once.

        from serve_app.app import compose

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options={"host": host, "port": port})
        serve.run(compose(context.config), name=APPLICATION, route_prefix="/")
        wait_until_ready(host, port)
        # Not through logging: importing ray.serve.llm has put JSON into its place.
        console.print(f"serve: up. Try:\n{curl_line(host, port)}", markup=False, highlight=False, soft_wrap=True)
        threading.Thread(target=say_outages, args=(APPLICATION, _say), daemon=True).start()
        wait_for_signal()
        _say("stopping, as soon as the answers under way are given. A second Ctrl-C does not wait for them.")
        end_at_once_on_signals()
        drain()


def end_at_once_on_signals() -> None:
    """By SystemExit, which closes everything on its way; also where a shell began this in the background, with SIGINT ignored."""
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: sys.exit(128 + number))


def wait_for_signal() -> None:
    """Until the first of SIGNALS."""
    came = threading.Event()
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: came.set())
    came.wait()


def drain() -> None:
    """Until the last answer is given and recorded. Serve gives each its time (`serving.longest_request_s`) and ends it then."""
    from ray import serve

    serve.delete(APPLICATION, _blocking=False)  # True would wait for a minute at most
    while APPLICATION in serve.status().applications:
        time.sleep(POLL_S)
    serve.shutdown()


def wait_until_ready(host: str, port: int) -> None:
    """Until the ingress has spoken to router and models, which warms the ways between them too; at most a minute.

    What does not get ready by then is said, and serving goes on: one model of two answers, too.
    """
    import httpx

    deadline = time.monotonic() + READY_S
    url = f"http://{reachable(host)}:{port}/ready"
    while True:
        try:
            response = httpx.get(url, timeout=READY_S)
            if response.is_success:
                return
            problem = response.json()["error"]["message"]
        except (httpx.HTTPError, ValueError, KeyError) as e:
            problem = f"{url} gives no answer ({type(e).__name__})."
        if time.monotonic() > deadline:
            logger.warning("serve: %s", problem)
            return
        time.sleep(0.5)


def reachable(host: str) -> str:
    """As a URL has it, of an address that is listened on.

    >>> [reachable(host) for host in ("0.0.0.0", "::", "::1", "node-1")]
    ['127.0.0.1', '[::1]', '[::1]', 'node-1']
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def check_host(host: str, serving: ServingConfig) -> None:
    """Raises ConfigError where whoever reaches this machine could ask without a key."""
    if serving.api_keys == "disabled" and not is_loopback(host):
        raise ConfigError(
            f"--host {host} opens the endpoint to the network, and serving.api_keys is `disabled`: whoever reaches the port could "
            "use it. Make a key with `python -m serve_app.api_keys NAME` and list what it prints, or leave --host out."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound to `host`.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "10.0.0.5", "node-1")]
    [True, True, True, False, False, False, False]
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name: of what it resolves to, nobody knows for how long
        return host == "localhost"


def _say(line: str) -> None:
    console.print(f"serve: {line}", markup=False, highlight=False, soft_wrap=True)


def curl_line(host: str, port: int) -> str:
    """A request to paste into a shell."""
    body = json.dumps({"model": "firewall", "messages": [{"role": "user", "content": "What is the capital of Docenyx?"}]})
    return f"curl -i http://{host}:{port}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"


if __name__ == "__main__":
    run(main)
