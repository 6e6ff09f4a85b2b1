"""Says on the console when a part of the application has no replica any more, and when it is back. Runs in `serve`'s driver.

The replicas say it in their own logs, which a console does not show.
"""

import time
from collections.abc import Callable, Iterator, Mapping

PERIOD_S = 2.0


def num_running(application: str) -> dict[str, int]:
    """Replicas that run, by deployment. Asks Serve's controller."""
    from ray import serve  # Seconds to import: --help and a wrong config answer at once.

    deployments = serve.status().applications[application].deployments
    return {name: deployment.replica_states.get("RUNNING", 0) for name, deployment in deployments.items()}


def outages(looks: Iterator[Mapping[str, int]], clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
    """A line at each end of each outage. looks: replicas that run, by deployment, time after time.

    >>> list(outages(iter([{"Router": 1}, {"Router": 0}, {"Router": 0}, {"Router": 1}]), iter([10, 52]).__next__))
    ['Router is down: no replica of it runs.', 'Router is up again, after 42 s.']
    """
    since: dict[str, float] = {}
    for look in looks:
        for name, count in look.items():
            if count == 0 and name not in since:
                since[name] = clock()
                yield f"{name} is down: no replica of it runs."
            elif count > 0 and name in since:
                yield f"{name} is up again, after {clock() - since.pop(name):.0f} s."


def say_outages(application: str, say: Callable[[str], None]) -> None:
    """For ever: to be run in a daemon thread."""

    def looks() -> Iterator[Mapping[str, int]]:
        while True:
            time.sleep(PERIOD_S)
            try:
                yield num_running(application)
            except Exception:  # the controller is down, or the application just ends: neither is to be told from here
                continue

    for line in outages(looks()):
        say(line)
