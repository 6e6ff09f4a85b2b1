"""The key for a server elsewhere, from this process' environment. No message ever holds any of it.

Runs in the driver of a job, which hands the key to its actors, and on ingress replicas.
"""

import os
import re

from firewall_ray.errors import ConfigError


def read_api_key(variable: str | None, field: str) -> str | None:
    """The value of `variable`, fit for a header; None where the config names none. field: where the config names it.

    Blanks and line ends around it are no part of it: a Kubernetes secret made with `echo` ends in one. Raises ConfigError where
    the variable is not set, or where no HTTP header can carry its value; a client would print the value with its complaint.
    """
    if variable is None:
        return None
    if variable not in os.environ:
        raise ConfigError(f"{field}: the environment variable {variable} is not set where this runs.")
    # What remains is looked at for what people paste along with a key.
    key = os.environ[variable].strip()
    problem = None
    if not key:
        problem = "is empty"
    elif re.match(r"bearer\s", key, re.IGNORECASE):
        problem = "begins with `Bearer`, which is added to it"
    elif not re.fullmatch(r"[!-~]+", key):  # printable ASCII
        problem = "has a blank, a line end, or a character beyond ASCII within"
    elif key[0] == key[-1] and key[0] in "'\"":
        problem = "is in quotes, which become part of it"
    # The variable's name and the kind of fault, and nothing of the value.
    if problem:
        raise ConfigError(f"{field}: the value of the environment variable {variable} {problem}. Set it to the key alone.")
    return key
