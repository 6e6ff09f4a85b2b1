"""grades/<model>/_MANIFEST.json -> what the report says of judges: who judged, by which rubric, and how far people agree.

Runs in the driver. The report needs labels and scores alone, so grades that are not there, or are another program's, say nothing.
"""

from typing import Any

from firewall_ray.config.run import RunConfig
from firewall_ray.store.layout import ArtifactStore


def judge_facts(config: RunConfig, store: ArtifactStore) -> dict[str, dict[str, Any]]:
    """By task: model, mode, rubric; calls, cache_hits and unreadable of both models' grading together; agreement, or None."""
    facts: dict[str, dict[str, Any]] = {}
    for key in (config.pair.weak, config.pair.strong):
        grades = store.grades(key)
        if grades.state() != "finished":
            continue
        manifest = grades.manifest()
        for task, counts in manifest["counts"].get("judge", {}).items():
            judge = manifest["settings"]["judges"][task]
            fact = facts.setdefault(task, {name: judge[name] for name in ("model", "mode", "rubric")})
            for name in ("calls", "cache_hits", "unreadable"):
                fact[name] = fact.get(name, 0) + counts[name]
            fact["agreement"] = counts.get("agreement") or fact.get("agreement")
    return facts
