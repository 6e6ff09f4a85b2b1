"""BARTScore against the model's own loss, one pair at a time and without padding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BartForConditionalGeneration

from firewall_ray.baselines.bart_score import BartScorer, encode_texts, train_small_bart
from firewall_ray.config.baselines import BartScoreConfig
from firewall_ray.errors import ModelError

TOKENIZER = "quickstart/models/strong"
SETTINGS = BartScoreConfig(
    path=None, tokenizer=TOKENIZER, max_length=32, hidden_size=32, num_layers=1, num_heads=2, epochs=20, batch_size=16, device="cpu"
)
WORDS = ["53", "el even", "a b c d", "Luvo", "7", "20 books", "no", "yes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART that learned to repeat: a right response is the reference itself."""
    folder = tmp_path_factory.mktemp("bart")
    train_small_bart([(WORDS * 8, WORDS * 8)], SETTINGS, folder)
    return folder


def test_a_score_is_the_mean_log_likelihood_of_the_reference(folder: Path) -> None:
    responses, references = ["53", "", "a b c d e f g", "yes"], ["a b c d", "53", "no", ""]
    scores = BartScorer(str(folder), SETTINGS).score(responses, references)
    model = BartForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    for score, response, reference in zip(scores, responses, references, strict=True):
        source, target = (torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]]) for text in (response, reference))
        with torch.no_grad():
            assert score == pytest.approx(-model(input_ids=source.long(), labels=target.long()).loss.item(), abs=6e-5)
    assert (scores < 0).all()


def test_a_response_equal_to_its_reference_scores_above_another(folder: Path) -> None:
    scorer = BartScorer(str(folder), SETTINGS)
    right, wrong = scorer.score(WORDS, WORDS), scorer.score(WORDS[1:] + WORDS[:1], WORDS)
    assert (right > wrong).all()


def test_training_repeats_itself_and_leaves_the_global_random_state_alone(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    in_batches = [(WORDS * 3, WORDS * 3), (WORDS * 5, WORDS * 5)]  # however the pairs come
    train_small_bart(in_batches, SETTINGS, tmp_path)
    assert torch.rand(1) == expected
    np.testing.assert_array_equal(
        BartScorer(str(tmp_path), SETTINGS).score(WORDS, WORDS), BartScorer(str(folder), SETTINGS).score(WORDS, WORDS)
    )


def test_texts_end_in_one_eos_also_when_they_are_cut() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    end = tokenizer.eos_token_id
    rows = encode_texts(tokenizer, ["", "a b c d e f g h"], max_length=4)
    assert rows[0] == [end]
    assert len(rows[1]) == 4
    assert rows[1].index(end) == 3
    assert encode_texts(tokenizer, [], max_length=4) == []


def test_a_bart_that_is_not_there_is_refused_with_the_way_out() -> None:
    with pytest.raises(ModelError, match=r"baselines\.bart_score: no tokenizer .*nowhere/at/all.*path: null"):
        BartScorer("nowhere/at/all", SETTINGS)


def test_a_pair_has_the_same_score_whatever_it_is_batched_with(folder: Path) -> None:
    """Hybrid LLM asks whether the weak model's response reaches the strong one's, and they are often the same words."""
    scorer = BartScorer(str(folder), SETTINGS)
    pair = ("el even", "53")
    (alone,) = scorer.score(*([text] for text in pair))
    for others in ([], WORDS[:2], WORDS):
        scores = scorer.score([pair[0], *others, "a b c d e f g a b c d e f g"], [pair[1], *others, "a b c d e f g"])
        assert scores[0] == alone
