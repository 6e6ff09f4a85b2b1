"""An S3 that runs here: moto's server, for pyarrow's own S3 client."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer

from firewall_ray.store.layout import ArtifactStore

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def s3_server() -> Iterator[str]:
    """HOST:PORT."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


def empty_root(endpoint: str) -> str:
    """A URI in an empty bucket, as a user would write it. ENVIRONMENT must be set."""
    bucket = f"bucket-{time.time_ns()}"
    options = f"endpoint_override={endpoint}&scheme=http&region=us-east-1"
    ArtifactStore(f"s3://{bucket}?{options}&allow_bucket_creation=true").filesystem.create_dir(bucket)
    return f"s3://{bucket}/runs/mine?{options}"
