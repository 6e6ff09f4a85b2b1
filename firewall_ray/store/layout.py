"""What lies where under ROOT: a dataset a folder, its schema, the job that makes it. `dataset.py` says what can be done with one.

Runs in the driver and in workers. ROOT is a local path or any URI that pyarrow's filesystems open (s3://, gs://, file://).
"""

import uuid

import pyarrow as pa
from pyarrow import fs as pafs

from firewall_ray.schemas import DECISIONS, EMBEDDINGS, GRADES, JUDGEMENTS, LABELS, OTHER_REQUESTS, QUERIES, SAMPLES, SCORES
from firewall_ray.store.dataset import Dataset, storage_errors
from firewall_ray.store.locations import check_folder, open_location


class ArtifactStore:
    """The datasets under one ROOT.

    >>> ArtifactStore("/tmp/run").samples("weak").path
    '/tmp/run/samples/weak'
    """

    def __init__(self, root: str) -> None:
        self.root = root
        with storage_errors(f"open ROOT {root!r}"):
            self.filesystem, self.base = open_location("root", root)

    def queries(self) -> Dataset:
        return self._dataset("queries", "queries", QUERIES, "python jobs/prepare_queries.py")

    def samples(self, model: str) -> Dataset:
        return self._dataset("samples", f"samples/{model}", SAMPLES, "python jobs/sample.py")

    def grades(self, model: str) -> Dataset:
        return self._dataset("grades", f"grades/{model}", GRADES, "python jobs/grade.py")

    def judge_cache(self) -> Dataset:
        """What judges have said. It grows file by file and is never finished, so it has no manifest."""
        return self._dataset("judge_cache", "judge_cache", JUDGEMENTS, "python jobs/grade.py")

    def labels(self) -> Dataset:
        return self._dataset("labels", "labels", LABELS, "python jobs/label.py")

    def router(self, name: str) -> Dataset:
        """A folder with a Hugging Face checkpoint and its `router.json`, not Parquet: the schema is empty."""
        return self._dataset("routers", f"routers/{name}", pa.schema([]), "python jobs/train_router.py")

    def scores(self, router: str) -> Dataset:
        return self._dataset("scores", f"scores/{router}", SCORES, "python jobs/score.py")

    def embeddings(self, name: str) -> Dataset:
        return self._dataset("embeddings", f"embeddings/{name}", EMBEDDINGS, "python jobs/baselines.py")

    def baseline(self, folder: str, schema: pa.Schema) -> Dataset:
        """What a baseline keeps on the way to its scores; the schema is empty for a folder that holds no Parquet."""
        return self._dataset(f"baselines/{folder}", f"baselines/{folder}", schema, "python jobs/baselines.py")

    def report(self) -> Dataset:
        return self._dataset("report", "report", pa.schema([]), "python jobs/report.py")

    def paper(self) -> Dataset:
        return self._dataset("paper", "paper", pa.schema([]), "python jobs/paper.py")

    def decisions(self) -> Dataset:
        """The serving application's decision log. It grows file by file and is never finished, so it has no manifest."""
        return self._dataset("decisions", "decisions", DECISIONS, "python -m serve_app")

    def other_requests(self) -> Dataset:
        """The requests that no score decided, as `decisions`."""
        return self._dataset("other_requests", "other_requests", OTHER_REQUESTS, "python -m serve_app")

    def spending(self) -> Dataset:
        """What was spent under `serving.spend_caps`: JSON, a file of each shared replica that there was lately. No manifest."""
        return self._dataset("spending", "spending", pa.schema([]), "python -m serve_app")

    def _dataset(self, kind: str, folder: str, schema: pa.Schema, made_by: str) -> Dataset:
        return Dataset(kind, f"{self.base}/{folder}", self.filesystem, schema, made_by)

    def children(self, folder: str) -> list[str]:
        """Names of the folders under ROOT/folder, sorted; empty when it does not exist."""
        selector = pafs.FileSelector(f"{self.base}/{folder}", allow_not_found=True)
        with storage_errors(f"list {self.root}/{folder}"):
            found = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def check_writable(self) -> None:
        """Before a job spends hours on work it cannot save. Raises ConfigError where ROOT is a file, else StorageFailure."""
        with storage_errors(f"read ROOT {self.root!r}"):
            check_folder("root", self.filesystem, self.base)
        probe = f"{self.base}/_write_check_{uuid.uuid4().hex}"  # several jobs may check at the same time
        with storage_errors(f"write under ROOT {self.root!r}"):
            self.filesystem.create_dir(self.base, recursive=True)
            # Written, not only asked about: rights on a store of objects show when an object is put.
            with self.filesystem.open_output_stream(probe) as stream:
                stream.write(b"")
            self.filesystem.delete_file(probe)
