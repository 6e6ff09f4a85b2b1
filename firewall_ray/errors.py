"""The exception tree. Two branches: the caller's fault (`UserError`) and ours or the cluster's (`SystemFailure`).

A message says what was asked, what was found, and what would work: the field, file, row or command to change.
"""


class FirewallRayError(Exception):
    """Base of every error this package raises on purpose."""


class UserError(FirewallRayError):
    """Something handed in is wrong: exit code 2 from a job, a 4xx from the server. Retrying cannot help."""


class ConfigError(UserError):
    """The run's YAML or a `--set` is wrong; the message names the field."""


class TaskError(UserError):
    """A task's data, options or name are wrong."""


class ArtifactError(UserError):
    """A dataset under ROOT is not what the contract says; the message names folder, file, column or row."""


class ArtifactMissing(ArtifactError):
    """A dataset a job needs does not exist or was begun and never finished."""


class LabelError(UserError):
    """Grades from which no label can be computed (no samples, arrays that do not fit)."""


class PolicyError(UserError):
    """A strong fraction, or scores, from which no routing decision can be made."""


class EvaluationError(UserError):
    """Scores and labels that cannot be evaluated together; the message names the router, column or query."""


class ModelError(UserError):
    """A model folder, tokenizer or checkpoint cannot be used as asked."""


class SystemFailure(FirewallRayError):
    """Something on our side failed: exit code 1 from a job, a 5xx from the server. The same call may work later."""


class EngineDied(SystemFailure):
    """An inference engine stopped answering and was restarted as often as the config allows."""


class StorageFailure(SystemFailure):
    """The artifact store refused or failed an operation (permissions, credentials, network)."""


class SandboxUnavailable(SystemFailure):
    """This machine does not allow untrusted programs to be run in the isolation that the config asks for."""
