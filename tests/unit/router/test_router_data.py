from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_labels import tiny_labels, write_labels

from firewall_ray.config.base import BackboneConfig
from firewall_ray.errors import LabelError
from firewall_ray.router.data import READ_PER_TOKEN, Collate, TokenRows, check_labels, columns_of, encode, pad_rows
from firewall_ray.router.model import load_tokenizer
from firewall_ray.store.layout import ArtifactStore

TOKENIZER = load_tokenizer(BackboneConfig(path=None, tokenizer="quickstart/models/weak"))


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=5), st.sampled_from([1, 8]))
def test_padding_keeps_every_row_and_masks_the_rest(rows: list[list[int]], multiple: int) -> None:
    ids, mask = pad_rows(rows, pad_token_id=0, multiple=multiple)
    assert ids.shape == mask.shape
    assert ids.shape[1] % multiple == 0
    assert ids.shape[1] - max(map(len, rows)) < multiple
    assert [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)] == rows
    assert not ids[mask == 0].any()


def test_collate_reads_a_slice_of_a_larger_table() -> None:
    # Arrow slices share their parent's buffers: an offset forgotten would give the neighbours' tokens.
    table = pa.table({"input_ids": pa.array([[1], [2, 3], [4, 5, 6]], pa.list_(pa.int32())), "soft_block": [0.0, 0.25, 1.0]})
    batch = Collate(pad_token_id=0, designs=["soft_block"])(table.slice(1, 2))
    assert batch["input_ids"].tolist() == [[2, 3, 0], [4, 5, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["soft_block"].tolist() == [0.25, 1.0]


def test_collate_reads_a_table_of_several_chunks() -> None:
    def part(ids: list[list[int]]) -> pa.Table:
        return pa.table({"input_ids": pa.array(ids, pa.list_(pa.int32())), "soft_block": pa.array([0.5] * len(ids), pa.float32())})

    batch = Collate(pad_token_id=0, designs=["soft_block"])(pa.concat_tables([part([[1, 2]]), part([[3], [4, 5]])]))
    assert batch["input_ids"].tolist() == [[1, 2], [3, 0], [4, 5]]


def test_long_prompts_keep_their_beginning_and_say_so() -> None:
    whole, _ = encode(TOKENIZER, ["Question: What is 1 plus 2?"], max_length=99)
    ids, truncated = encode(TOKENIZER, ["Question: What is 1 plus 2?", "What"], max_length=3)
    assert ids[0] == whole[0][:3]
    assert truncated.tolist() == [True, False]


def test_a_prompt_of_a_mebibyte_is_looked_at_no_further_than_it_is_read() -> None:
    """The tokenizer took seconds for it, in which a router replica could score nobody else's."""
    seen = []

    def tokenizer(prompts: list[str], **options: Any) -> Any:
        seen.extend(prompts)
        return TOKENIZER(prompts, **options)

    tokenizer.pad_token_id = TOKENIZER.pad_token_id  # type: ignore[attr-defined]
    prompt = "Question: What is 1 plus 2? " * 40_000
    (ids,), truncated = encode(tokenizer, [prompt], max_length=16)  # type: ignore[arg-type]
    assert max(map(len, seen)) == READ_PER_TOKEN * 16
    assert ids == encode(TOKENIZER, [prompt[:400]], max_length=16)[0][0]
    assert truncated.tolist() == [True]
    # Also where the tokens of what was looked at are fewer than max_length.
    assert encode(TOKENIZER, [" " * 10_000 + "What"], max_length=300)[1].tolist() == [True]


def test_a_prompt_of_exactly_max_length_is_not_truncated() -> None:
    (ids,), _ = encode(TOKENIZER, ["What is 1 plus 2?"], max_length=99)
    assert encode(TOKENIZER, ["What is 1 plus 2?"], max_length=len(ids))[1].tolist() == [False]


def test_an_empty_prompt_becomes_one_pad_token() -> None:
    assert encode(TOKENIZER, [""], max_length=5)[0] == [[TOKENIZER.pad_token_id]]


def test_columns_come_sorted_by_query_id_whatever_the_order_of_the_blocks() -> None:
    def block(query_id: str, ids: list[int]) -> pa.Table:
        return pa.table({"query_id": [query_id], "input_ids": [ids]})

    columns = columns_of([block("b", [2]), block("a", [1, 1])])
    assert list(columns["query_id"]) == ["a", "b"]
    assert [row.tolist() for row in columns["input_ids"]] == [[1, 1], [2]]


def test_validation_rows_lie_in_arrow_and_are_not_copied() -> None:
    # A slice, whose buffers begin with rows that are not its own, and a second chunk; the rows are wanted in another order.
    one = pa.array([[9], [1, 2], [3]], pa.list_(pa.int32())).slice(1)
    two = pa.array([[4, 5, 6], [7]], pa.list_(pa.int32()))
    ids = pa.chunked_array([one, two])
    rows = TokenRows(ids, np.array([3, 0, 2, 1]))
    assert [row.tolist() for row in rows] == [[7], [1, 2], [4, 5, 6], [3]]
    assert rows.lengths.tolist() == [1, 2, 3, 1]
    values = two.values.buffers()[1]
    assert values.address <= rows[2].__array_interface__["data"][0] < values.address + values.size


def test_a_million_validation_rows_take_less_than_60_bytes_each_beside_their_blocks() -> None:
    import tracemalloc

    n = 100_000
    ids = pa.ListArray.from_arrays(np.arange(0, 75 * n + 1, 75, dtype=np.int32), pa.array(np.zeros(75 * n, np.int32)))
    table = pa.table(
        {"query_id": pa.array([f"{i:032x}" for i in range(n)]), "input_ids": ids, "soft_block": np.zeros(n, np.float32)}
    )
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    columns = columns_of([table])
    # 16 bytes of place, length and block in numpy, the label's 4, and in Arrow the id's 32 and its offset's 4.
    assert (tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before) / n < 60
    tracemalloc.stop()
    assert len(columns["input_ids"]) == n


class TestCheckLabels:
    def check(self, tmp_path: object, table: pa.Table, num_workers: int = 2, limit: int | None = None) -> dict[str, int]:
        store = ArtifactStore(str(tmp_path))
        write_labels(store, table)
        return check_labels(store.labels(), ["soft_block"], num_workers, limit)

    def replaced(self, table: pa.Table, name: str, values: list[float]) -> pa.Table:
        return table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.array(values, pa.float32()))

    def test_counts_the_splits(self, tmp_path: object) -> None:
        assert self.check(tmp_path, tiny_labels(20, 7, 5)) == {"train": 20, "validation": 7}

    def test_limit_holds_for_each_split(self, tmp_path: object) -> None:
        assert self.check(tmp_path, tiny_labels(20, 3), limit=5) == {"train": 5, "validation": 3}

    def test_no_validation_split_names_the_field_to_set(self, tmp_path: object) -> None:
        with pytest.raises(LabelError, match=r"validation split.*num_validation"):
            self.check(tmp_path, tiny_labels(20, 0))

    def test_fewer_rows_than_workers_are_refused(self, tmp_path: object) -> None:
        with pytest.raises(LabelError, match=r"1 rows of the train split.*num_workers is 2"):
            self.check(tmp_path, tiny_labels(1, 5))

    def test_labels_that_never_differ_teach_nothing(self, tmp_path: object) -> None:
        table = tiny_labels(10, 5)
        # The validation rows differ; the training rows do not.
        with pytest.raises(LabelError, match=r"'soft_block' is 1 in every training row"):
            self.check(tmp_path, self.replaced(table, "soft_block", [1.0] * 10 + [0.0] * 5))

    @pytest.mark.parametrize("bad", [1.5, -0.1, np.nan])
    def test_labels_outside_0_to_1_are_refused(self, tmp_path: object, bad: float) -> None:
        with pytest.raises(LabelError, match=r"'soft_block'.*probabilities in \[0, 1\]"):
            self.check(tmp_path, self.replaced(tiny_labels(10, 5), "soft_block", [bad] + [0.0] * 14))
