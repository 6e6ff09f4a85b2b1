"""Columns that somebody else wrote -> the contract's types: which types may be read, and the safe cast of a batch.

Runs wherever Parquet is read, in the driver and in workers.
"""

import pyarrow as pa

from firewall_ray.errors import ArtifactError
from firewall_ray.schemas import is_optional


def cast_batch(batch: pa.RecordBatch, schema: pa.Schema, where: str, first_row: int = 0) -> pa.RecordBatch:
    """The batch's columns in `schema`'s order and types; an optional one that it lacks is nulls.

    Raises ArtifactError naming the column, and the row of a null.
    first_row: the batch's place in what `where` names, so that the row is the file's, counted from 0.
    """
    arrays = []
    for field in schema:
        is_there = field.name in batch.schema.names or not is_optional(field)
        column = batch.column(field.name) if is_there else pa.nulls(batch.num_rows, field.type)
        try:
            # pyarrow's cast is safe unless told otherwise: it raises for a value that the type cannot hold.
            column = column if column.type == field.type else column.cast(field.type)
        except pa.ArrowException as e:
            raise ArtifactError(f"{where}, column {field.name!r}: {e}") from e
        if not field.nullable and column.null_count:
            row = first_row + column.is_null().index(True).as_py()
            raise ArtifactError(f"{where}, column {field.name!r}: null in row {row} (counted from 0); every row needs a value.")
        arrays.append(column)
    # The schema also says again which columns hold no null; others' files rarely do.
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a cast can be safe: same type, or another width of it. Overflow is found when the values are cast."""
    # pandas and polars write a column of nulls alone, such as `error` where nothing failed, with the type null.
    if pa.types.is_null(found) or found == wanted:
        return True
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        return is_list and castable(found.value_type, wanted.value_type)
    same_family = (
        lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t) or _is_string_dictionary(t),
        pa.types.is_integer,
        pa.types.is_floating,
    )
    # Whole numbers may be rates: 0 and 1 written as integers.
    return any(test(found) and test(wanted) for test in same_family) or (
        pa.types.is_floating(wanted) and pa.types.is_integer(found)
    )


def _is_string_dictionary(found: pa.DataType) -> bool:
    return pa.types.is_dictionary(found) and pa.types.is_string(found.value_type)
