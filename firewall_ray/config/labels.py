"""The section `labels`: which queries have a label that can be trained on."""

from typing import Literal

from pydantic import Field

from firewall_ray.config.base import Strict


class LabelsConfig(Strict):
    artefacts: Literal["keep", "leave_out"] = Field(
        "keep",
        description="Queries that neither model solves in any sample, where more than half of the strong model's samples have no "
        "answer that could be read or were cut off. keep: such samples are wrong answers, so these queries are blocked. leave_out: "
        "they have no label in train and validation; the test split keeps all, or it would be easier than what is asked later.",
    )
