"""Labels of the run and of its rounds, put together."""

from handmade import write
from relabel_parts import chat, finish_labels, label, log

from firewall_ray.config.run import RunConfig
from firewall_ray.relabel.draw import run_draw
from firewall_ray.relabel.fold import run_fold
from firewall_ray.relabel.stores import RoundStore
from firewall_ray.store.layout import ArtifactStore


def test_labels_are_folded_in_order_and_the_first_of_a_query_counts(config: RunConfig, store: ArtifactStore) -> None:
    write(store.labels(), [label("a", "A", weak=0.25), label("b", "B")])
    finish_labels(RoundStore(store.root, "april"), [label("b", "B", weak=0.5), label("c", "C", weak=0.75)])
    log(store, chat("New?"))
    round_store = RoundStore(store.root, "may")
    run_draw(config, store, round_store)
    finish_labels(round_store, [label("c", "C"), label("d", "D", split="test")])
    # A round that came to its end meanwhile belongs to the next one: this one has drawn without it.
    finish_labels(RoundStore(store.root, "also"), [label("e", "E")])
    result = run_fold(config, store, round_store)
    found = {row["query_id"]: row["pass_rate_weak"] for row in round_store.folded().require().read().to_pylist()}
    assert found == {"a": 0.25, "b": 0.0, "c": 0.75, "d": 0.0}
    assert (result["labels"], result["run"], result["round april"], result["this_round"]) == (4, 2, 1, 1)
    assert run_fold(config, store, round_store)["action"] == "skip"
    assert store.labels().num_rows() == 2
