"""Where a user says that something lies, as a filesystem and a path on it: a local path, or a URI that pyarrow opens."""

import re
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from firewall_ray.errors import ConfigError

# s3:/bucket, and s3:bucket where the scheme is a known one; else a colon may be part of a folder's name, as in lr=1:run.
_NO_URI = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):/+|(s3|gs|gcs|abfss?|hdfs|viewfs|file|https?):)", re.IGNORECASE)


def open_location(what: str, where: str) -> tuple[pafs.FileSystem, str]:
    """what: the flag or field, for messages; `where` may not exist yet. A local path comes back absolute.

    Raises ConfigError for what is blank, has another scheme than pyarrow's filesystems, or would silently become a folder of a
    strange name in the working directory. Raises OSError where a store does not answer (S3 is asked for a bucket's region).
    """
    example = "Give a path, or a URI such as s3://bucket/run or gs://bucket/run."
    if not where.strip() or where != where.strip() or not where.isprintable():
        raise ConfigError(f"{what}: {where!r} is empty, or has blanks around it or characters that cannot be seen. {example}")
    if "://" not in where:
        if found := _NO_URI.match(where):
            scheme = (found[1] or found[2]).lower()
            uri = f"{scheme}://{'/' if scheme == 'file' else ''}{where[found.end() :]}"
            raise ConfigError(f"{what}: {where!r} is no URI. Write {uri}, or ./{where} where a local path really begins so.")
        if found := re.search(r"\$(\w+|\{\w+\})", where):
            raise ConfigError(f"{what}: {where!r} has the variable {found[0]}, which is not replaced here. Write the path itself.")
        # Absolute, as workers have another working directory; not resolved, for a link may lead elsewhere on another node.
        return pafs.LocalFileSystem(), str(Path(where).expanduser().absolute())
    try:
        filesystem, path = pafs.FileSystem.from_uri(where)
    except (pa.ArrowException, ValueError) as e:
        raise ConfigError(f"{what}: {where!r} cannot be opened: {e}. {example}") from e
    if not path.strip("/"):
        raise ConfigError(f"{what}: {where!r} names no folder. {example}")
    return filesystem, path


def check_folder(what: str, filesystem: pafs.FileSystem, path: str) -> None:
    """Raises ConfigError where `path`, or a folder above it on a local disk, is a file. It need not exist."""
    # In a store of objects `a` and `a/b` may both be objects, so nothing above can be in the way.
    places = [Path(path), *Path(path).parents] if isinstance(filesystem, pafs.LocalFileSystem) else [path]
    for place in places:
        if filesystem.get_file_info(str(place)).type == pafs.FileType.File:
            raise ConfigError(f"{what}: {place} is a file, so no folder can be there. Name a folder, or remove the file.")
