"""Whether the cluster has room: what no nodes could ever hold is refused at once, what is only taken now is waited for in words.

Runs in the driver. Ray itself waits without a word for both.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray._private.state import available_resources_per_node  # Ray's only way to free resources by node; a developer API

from firewall_ray.config.base import ActorsConfig
from firewall_ray.errors import ConfigError

NODE_GROUP = "ray.io/node-group"  # Ray's label of nodes that were started by `ray up` or KubeRay
ACCELERATOR = "accelerator_type:"  # Ray's prefix of the resource that a node has for its kind of GPU, one of each
FIRST_WORD_AFTER_S = 10.0  # placing an actor where there is room takes Ray a second or two
SAY_EVERY_S = 180.0

Resources = dict[str, float]

logger = logging.getLogger("firewall_ray")


@dataclass(frozen=True)
class Need:
    """What must be there for a stage to begin.

    what: in a message, beginning with its section of the config, such as "models.strong: an engine". parts: each whole on one node,
    all at the same time; alike, but for the first, which may take more. fields: of the config, which change it.
    """

    what: str
    parts: Sequence[Resources]
    fields: Sequence[str]

    def __str__(self) -> str:
        return f"{self.what} takes {listed(self.parts)}, each on one node"


def accelerator(kind: str | None) -> Resources:
    """What an actor reserves that is to be on a node with this type of GPU: the thousandth part that Ray itself takes."""
    return {} if kind is None else {f"{ACCELERATOR}{kind}": 0.001}


def actors_need(section: str, actors: ActorsConfig) -> Need:
    """Of a pool of torch models, which begins with one of its actors."""
    part = {"CPU": actors.num_cpus, **({"GPU": 1.0} if actors.device == "gpu" else {})}
    return Need(f"{section}: an actor", [part], [f"{section}.num_cpus", f"{section}.device"])


# Ever ----------------------------------------------------------------------------------------------------------------


def check_room(need: Need) -> None:
    """Raises ConfigError where it fits on no nodes, were they idle; where an autoscaler may bring some, only warns."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    problem = lack_of_room(need, [node["Resources"] for node in nodes])
    if problem is None:
        return
    if any(NODE_GROUP in node["Labels"] for node in nodes):
        logger.warning("%s Waiting for the autoscaler to start some.", problem)
        return
    raise ConfigError(
        f"{problem} It would wait for ever: start nodes that hold it, or change what it takes ({', '.join(need.fields)})."
    )


def lack_of_room(need: Need, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Why it fits on no nodes with these resources, were they idle; None where it does."""
    if fits(need.parts, nodes):
        return None
    return f"{need}, and the cluster's nodes are {_named_in(need, nodes)}.{_accelerators(need, nodes)}"


def fits(parts: Iterable[Resources], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether the parts find room when each takes the first node that has some. Exact, as parts are alike but for the first,
    which takes more CPUs.

    >>> fits([{"GPU": 4}, {"GPU": 4}], [{"GPU": 4}, {"GPU": 4}]), fits([{"GPU": 8}], [{"GPU": 4}, {"GPU": 4}])
    (True, False)
    """
    # A Counter has 0 of what a node does not list.
    left = [Counter(node) for node in nodes]
    for part in parts:
        node = next((node for node in left if all(node[name] >= amount for name, amount in part.items())), None)
        if node is None:
            return False
        node.subtract(part)
    return True


def _accelerators(need: Need, nodes: Iterable[Mapping[str, float]]) -> str:
    """The types of GPU that there are, where one was asked for that no node has. Names a 40 GB and an 80 GB card share."""
    asked = {name.removeprefix(ACCELERATOR) for part in need.parts for name in part if name.startswith(ACCELERATOR)}
    there = {name.removeprefix(ACCELERATOR) for node in nodes for name in node if name.startswith(ACCELERATOR)}
    if not asked - there:
        return ""
    missing = min(asked - there)
    # A100 for A100-80G and A100-40G, the two names that Ray knows and gives to no node by itself. Nothing is mapped in silence:
    # who writes 80G may have nodes of both, and an engine that is made for the one does not load on the other.
    family = missing.rpartition("-")[0]
    fields = ", ".join(field for field in need.fields if field.endswith("accelerator_type"))
    take_the_family = f" Where all of them have that memory, ask for {family} ({fields})." if family in there else ""
    return (
        f" Accelerator types of its nodes: {', '.join(sorted(there)) or 'none'}. Ray names a GPU without its memory (A100 for both "
        f"A100s); what says more is there only where a node was started with it: "
        f"ray start --resources='{{\"{ACCELERATOR}{missing}\": 1}}'.{take_the_family}"
    )


# Now -----------------------------------------------------------------------------------------------------------------


def shortage(need: Need) -> str | None:
    """What is missing for it now, in words: what it takes, what is free, what there is. None where there is room."""
    free_by_node = available_resources_per_node()
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    # A node that has nothing left of a resource does not list it.
    free = [free_by_node.get(node_id, {}) for node_id in nodes]
    if fits(need.parts, free):
        return None
    return f"{need}. Free now: {_named_in(need, free)}; in all: {_named_in(need, nodes.values())}."


@contextmanager
def said_while_waiting(need: Need, begun: Callable[[], bool]) -> Iterator[None]:
    """While the body runs and `begun()` is false, logs what is waited for, again every SAY_EVERY_S; then also that it has begun.

    begun: called from a thread of its own, every few seconds. What it raises counts as not begun.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_say, args=(need, begun, ended), name="room-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


def _say(need: Need, begun: Callable[[], bool], ended: threading.Event) -> None:
    since = time.monotonic()
    pause_s, said, is_over = FIRST_WORD_AFTER_S, False, False
    next_word_at = since + pause_s
    while not is_over:
        # Looked at more often than talked about: that it has begun should be said soon. Once more after the end, since the body
        # may have seen it first.
        is_over = ended.wait(min(pause_s, 2.0))
        waited_s = time.monotonic() - since
        try:
            if begun():
                if said:
                    logger.info("%s began after %.0f s of waiting.", need.what, waited_s)
                return
            if is_over or time.monotonic() < next_word_at:
                continue
            words = shortage(need)
        except Exception as e:  # words only; whatever fails here must not disturb the stage
            logger.debug("room watch: %r", e)
            continue
        next_word_at = time.monotonic() + SAY_EVERY_S
        if words is not None:
            said = True
            logger.warning(
                "waiting for room, %.0f s by now: %s `ray status` says who has it. Ctrl-C ends the waiting.", waited_s, words
            )


# Words ---------------------------------------------------------------------------------------------------------------


def listed(resources: Iterable[Mapping[str, float]]) -> str:
    """For example: 2 x (4 GPU, 96 CPU)."""
    words = [", ".join(f"{amount:g} {name}" for name, amount in each.items()) for each in resources]
    return ", ".join(f"{count} x ({each})" for each, count in Counter(words).items())


def _named_in(need: Need, nodes: Iterable[Mapping[str, float]]) -> str:
    """The nodes that have any of what is needed, and how much of that alone."""
    names = list(dict.fromkeys(name for part in need.parts for name in part))
    there = [{name: node.get(name, 0) for name in names} for node in nodes]
    return listed(node for node in there if any(node.values())) or "without any of it"
