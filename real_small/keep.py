"""Writes what this folder keeps of a finished run of the real pair: which questions were asked, and the verdicts; no texts."""

from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

from firewall_ray.store.layout import ArtifactStore
from real_small.report import ASKED, MODELS, graded


def main(root: Annotated[str, typer.Argument(help="ROOT of the run: make real.")]) -> None:
    store = ArtifactStore(root)
    asked = store.queries().require().read(["query_id", "task", "split"]).sort_by("query_id")
    pq.write_table(asked, ASKED, compression="zstd")
    for key in MODELS:
        graded(key).parent.mkdir(exist_ok=True)
        grades = store.grades(key).require().read().sort_by("query_id")
        # A run that was made smaller has more samples than questions.
        grades = grades.filter(pc.is_in(grades["query_id"], asked["query_id"].combine_chunks()))
        # An error's text may hold a path or a prompt; that there was one is kept.
        errors = pa.array([error and "error" for error in grades["error"].to_pylist()], pa.string())
        pq.write_table(grades.set_column(grades.column_names.index("error"), "error", errors), graded(key), compression="zstd")


if __name__ == "__main__":
    typer.run(main)
