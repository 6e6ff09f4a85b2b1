"""Who killed whom: rows set aside after two deaths, nodes that die of themselves, pools that get nothing done."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.cluster.journal import Journal
from firewall_ray.errors import EngineDied, ModelError


def journal(max_starts: int = 4, dead: set[str] | None = None) -> Journal:
    nodes = {"n1", "n2"} - (dead or set())
    return Journal(max_starts, lambda: nodes)


def test_a_row_that_kills_its_actor_twice_is_set_aside_and_its_neighbours_are_not() -> None:
    found = journal()
    ids = ["a", "bad", "c"]
    assert found.treatment("w1", ids) == ["together"] * 3
    found.take("w1", "n1", ids)  # and w1 dies
    assert found.treatment("w2", ids) == ["alone"] * 3
    found.done(found.take("w2", "n1", ["a"]))
    found.take("w2", "n1", ["bad"])  # and w2 dies
    assert found.treatment("w3", ids) == ["together", "aside", "alone"]  # c was never tried alone


def test_rows_of_a_node_that_died_are_not_suspects() -> None:
    found = journal(dead={"n2"})
    found.take("w1", "n2", ["a", "b"])
    assert found.treatment("w2", ["a", "b"]) == ["together", "together"]


def test_what_was_done_before_a_death_is_no_suspect() -> None:
    found = journal()
    found.done(found.take("w1", "n1", ["a"]))
    found.take("w1", "n1", ["b"])
    assert found.treatment("w2", ["a", "b"]) == ["together", "alone"]


def test_two_batches_in_flight_are_both_suspects_and_a_batch_of_another_actor_is_none() -> None:
    found = journal()
    found.take("w1", "n1", ["a"])
    found.take("w1", "n1", ["b"])
    found.take("other", "n1", ["c"])
    assert found.treatment("w2", ["a"]) == ["alone"]
    assert found.treatment("w2", ["b"]) == ["alone"]
    assert found.treatment("other", ["d"]) == ["together"]


def test_the_tenth_reclaimed_node_ends_nothing_while_rows_get_done() -> None:
    found = journal(max_starts=2)
    for death in range(10):
        assert found.started(), f"after {death} deaths"
        found.done(found.take(f"w{death}", "n1", [f"q{death}"]))
    assert found.why_ended() is None


def test_starts_without_a_row_done_end_the_pool_with_what_the_last_one_said() -> None:
    found = journal(max_starts=2)
    assert found.started()
    assert found.started()
    found.could_not_start("OutOfMemoryError: 141 GB wanted, 80 there")
    assert not found.started()
    verdict = found.why_ended()
    assert isinstance(verdict, EngineDied)
    assert "2 times without" in str(verdict)
    assert "141 GB wanted" in str(verdict)


def test_what_the_caller_has_to_change_is_not_tried_again() -> None:
    found = journal(max_starts=100)
    assert found.started()
    found.could_not_start("ModelError: ...", ModelError("no model at 'x'"))
    assert not found.started()
    with pytest.raises(ModelError, match="no model at 'x'"):
        raise found.why_ended() or AssertionError


@given(killers=st.sets(st.integers(0, 29), max_size=4), batch=st.integers(1, 10))
def test_whatever_rows_kill_the_others_are_done_and_none_kills_more_than_twice(killers: set[int], batch: int) -> None:
    """A pool of one actor, simulated: it dies of a killer row, in company or alone, and its batch comes again."""
    found = journal(max_starts=3)
    done: set[str] = set()
    aside: set[str] = set()
    deaths = 0
    worker = 0
    assert found.started()
    for start in range(0, 30, batch):
        ids = [f"q{i}" for i in range(start, min(start + batch, 30))]
        while True:
            treatments = dict(zip(ids, found.treatment(f"w{worker}", ids), strict=True))
            aside |= {i for i in ids if treatments[i] == "aside"}
            together = [i for i in ids if treatments[i] == "together"]
            groups = ([together] if together else []) + [[i] for i in ids if treatments[i] == "alone"]
            for group in groups:
                number = found.take(f"w{worker}", "n1", group)
                if any(int(i[1:]) in killers for i in group):
                    break
                found.done(number)
                done |= set(group)
            else:
                break
            deaths += 1
            worker += 1
            assert found.started()  # between a killer's two deaths and the next one's a row is done, or set aside
    assert aside == {f"q{i}" for i in killers}
    assert done == {f"q{i}" for i in range(30)} - aside
    assert len(killers) <= deaths <= 2 * len(killers)  # killers of one batch share the death in company
