"""What fails on a replica arrives at the ingress as an exception of this application's, which needs no vLLM to be unpickled."""

import asyncio
import subprocess
import sys

import pytest
from ray import cloudpickle
from ray.exceptions import RayTaskError

from serve_app.crossing import ReplicaFailed, is_plain, only_plain_errors
from serve_app.models.answers import EngineCrashed, EngineDead

# A process in which importing either is an error, as it unpickles what Ray sends and looks at it as the ingress does.
INGRESS = """
import pickle, sys
for name in ("vllm", "torch", "transformers", "openvino"):
    sys.modules[name] = None
error = pickle.loads(sys.stdin.buffer.read()).as_instanceof_cause()
from serve_app.models.client import _why
print(_why(error), [name for name in ("vllm", "torch", "transformers", "openvino") if sys.modules.get(name)])
"""


class Foreign(Exception):
    """Another library's, in a module that the ingress does not have."""


Foreign.__module__ = "vllm.v1.engine.exceptions"


def raised(error: BaseException) -> BaseException:
    """What becomes of it on a replica."""
    with pytest.raises(type(error) if not isinstance(error, Exception) or is_plain(error) else ReplicaFailed) as caught:
        with only_plain_errors():
            raise error
    return caught.value


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (EngineDead(), "dead"),
        (EngineCrashed(), "crashed"),
        (Foreign("the prompt"), "failed"),
        (ValueError(Foreign("the prompt")), "failed"),
        (ExceptionGroup("several", [Foreign("the prompt")]), "failed"),
    ],
)
def test_an_ingress_without_vllm_and_torch_reads_every_failure(error: Exception, why: str) -> None:
    plain = raised(error)
    assert "the prompt" not in str(plain)
    assert isinstance(plain, Exception)
    crossing = cloudpickle.dumps(RayTaskError("answer", "a traceback", plain))
    ingress = subprocess.run([sys.executable, "-c", INGRESS], input=crossing, capture_output=True, check=False)
    assert ingress.stdout.decode().split() == [why, "[]"], ingress.stderr.decode()


def test_a_foreign_exception_that_crosses_as_it_is_would_be_seen_here() -> None:
    """The test above can fail."""
    crossing = b"cvllm.v1.engine.exceptions\nEngineDeadError\n."  # pickle's word for the class
    ingress = subprocess.run([sys.executable, "-c", INGRESS], input=crossing, capture_output=True, check=False)
    assert ingress.returncode != 0
    assert b"vllm" in ingress.stderr


def test_a_cancelled_request_is_cancelled() -> None:
    assert isinstance(raised(asyncio.CancelledError()), asyncio.CancelledError)
