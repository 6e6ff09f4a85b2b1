"""Ray Serve's own settings that make it fast, and large bodies possible. docs/serving.md says what each gained.

Ray Serve reads them when it is imported, in every process. `apply` sets them for a Ray that this process starts; a cluster's
`ray start` has them in its environment (ray_cluster.yaml, deploy/kuberay/).
"""

import os

from serve_app import otlp

SETTINGS = {
    # A replica's code and its handles share one event loop instead of three threads' loops, and access logs are written many
    # at a time. Nothing here blocks an event loop: the router scores in a thread.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Part of the above that is of use behind a load balancer alone: replicas listen on ports of their own, proxies run on the
    # head node only, and a replica takes half a minute to stop.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    # A replica that goes has as long as its longest answer may take. One whose engine is dead or hangs has nothing to end, and the
    # one in its place may need its GPUs.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
}

# Of every replica (in its runtime_env). Replicas talk gRPC, whose own limit is 4 MiB a message: larger bodies and answers
# came to nothing, as a 503. 2 GiB less a byte is the most that it takes; `serving.max_body_mib` is what limits bodies.
REPLICA_SETTINGS = {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1)}


def replica_environment() -> dict[str, str]:
    """The variables of every replica's runtime_env. Called in the driver, whose collector theirs is.

    Raises ConfigError where spans cannot be sent as its variables say.
    """
    return {**REPLICA_SETTINGS, **otlp.passed_on(os.environ)}


def apply() -> None:
    """Put them into this process' environment, where it says nothing else. Call it before anything imports `ray.serve`."""
    for name, value in (SETTINGS | REPLICA_SETTINGS).items():
        os.environ.setdefault(name, value)
