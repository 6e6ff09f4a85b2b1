"""Which ids come twice or are missing, bucket by bucket: against Python's own sets."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.errors import ArtifactError
from firewall_ray.store import joins as spill
from firewall_ray.store.query_ids import check_unique, in_buckets, without

Ids = st.lists(st.text(min_size=1, max_size=4), max_size=60)


def chunked(ids: list[str], size: int) -> list[pa.Array]:
    return [pa.array(ids[start : start + size], pa.string()) for start in range(0, len(ids), size)]


@given(Ids, Ids, st.integers(1, 9))
def test_buckets_hold_every_id_of_both_columns_and_equal_ones_together(left: list[str], right: list[str], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "BUCKET_ROWS", 8)
        buckets = list(in_buckets(len(left), chunked(left, size), chunked(right, size)))
    assert len(buckets) == max(1, -(-len(left) // 8))
    for number, column in enumerate((left, right)):
        assert sorted(id_ for bucket in buckets for id_ in bucket[number].to_pylist()) == sorted(column)
    for i, first in enumerate(buckets):
        for second in buckets[i + 1 :]:
            assert not {*first[0].to_pylist(), *first[1].to_pylist()} & {*second[0].to_pylist(), *second[1].to_pylist()}


@given(Ids, Ids)
def test_what_is_missing_is_what_sets_say(left: list[str], right: list[str]) -> None:
    assert without(pa.chunked_array([left], pa.string()), pa.chunked_array([right], pa.string())).to_pylist() == [
        id_ for id_ in left if id_ not in set(right)
    ]


def test_ids_of_any_text_type_are_compared() -> None:
    ((plain, large),) = in_buckets(1, [pa.array(["a"])], [pa.array(["a"], pa.large_string())])
    assert plain.to_pylist() == large.to_pylist() == ["a"]
    assert len(without(plain, large)) == 0


def test_an_id_that_comes_twice_is_named_with_what_to_do() -> None:
    check_unique(pa.array(["a", "b"]), "labels")
    with pytest.raises(ArtifactError, match=r"^labels: query_id 'b' comes more than once \(2 such\)\. Cut\.$"):
        check_unique(pa.array(["a", "b", "c", "b", "c"]), "labels", "Cut.")
