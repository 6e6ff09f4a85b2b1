import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from handmade import make_config, query, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from firewall_ray.baselines.embedders import HiddenStates, OpenAIEmbeddings, api_key, make_embedder
from firewall_ray.baselines.embeddings import embedding_name, questions_of, read_embeddings, run_embedding
from firewall_ray.config.baselines import EmbeddingConfig, OpenAIEmbeddingConfig
from firewall_ray.engines.checkpoint import Checkpoint
from firewall_ray.errors import ArtifactError, ConfigError, ModelError
from firewall_ray.store.layout import ArtifactStore

WEAK = "quickstart/models/weak"
PROMPTS = [
    "Question: What is 2 plus 3?\nAnswer: ",
    "Hi",
    "",
    "Question: Which city do people in Docenyx call their capital?\nAnswer: ",
]


def test_a_hidden_state_vector_is_the_mean_over_the_prompts_own_tokens() -> None:
    vectors = HiddenStates(Checkpoint.at(WEAK), EmbeddingConfig(device="cpu", batch_size=3))(PROMPTS)
    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    model = AutoModelForCausalLM.from_pretrained(WEAK, dtype=torch.float32)
    for prompt, vector in zip(PROMPTS, vectors, strict=True):
        ids = tokenizer(prompt)["input_ids"] or [tokenizer.pad_token_id]
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(vector, states.mean(dim=0).numpy(), atol=1e-5)


def test_vectors_are_read_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    dataset = ArtifactStore(str(tmp_path)).embeddings("theirs")
    write(dataset, [{"query_id": "a", "embedding": [1.0, 2.0]}, {"query_id": "b", "embedding": [3.0, 4.0]}])
    assert read_embeddings(dataset, ["b", "a", "b"]).tolist() == [[3, 4], [1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", [1.0])], "lacks query 'b'"),
        ([("a", [1.0]), ("b", [1.0, 2.0])], r"vectors of \[1, 2\] numbers"),
        ([("a", []), ("b", [])], r"vectors of \[0\] numbers"),
        ([("a", [1.0]), ("b", [float("nan")])], "the vector of 'b' holds what is no finite number"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path: Path, rows: list[tuple[str, list[float]]], message: str) -> None:
    dataset = ArtifactStore(str(tmp_path)).embeddings("theirs")
    write(dataset, [{"query_id": query_id, "embedding": vector} for query_id, vector in rows])
    with pytest.raises(ArtifactError, match=message):
        read_embeddings(dataset, ["a", "b"])


def test_the_folder_says_what_made_the_vectors() -> None:
    assert embedding_name(make_config("/r")) == "hidden_states_weak"
    named = {"embedding": {"sentence_transformer": "sentence-transformers/all-MiniLM-L6-v2"}}
    assert embedding_name(make_config("/r", baselines=named)) == "all-MiniLM-L6-v2"


def test_a_model_that_cannot_be_read_is_refused_before_anything_is_begun(tmp_path: Path) -> None:
    store, prompts = ArtifactStore(str(tmp_path)), pa.table({"query_id": ["a"], "prompt": ["?"]})
    write(store.labels(), [{"query_id": "a"}], schema=pa.schema([("query_id", pa.string())]))
    with pytest.raises(ModelError, match=r"baselines\.embedding: the weak model's tokenizer cannot be loaded from '-'"):
        run_embedding(make_config(str(tmp_path)), store, prompts)
    served = {"engine": "openai", "base_url": "http://localhost/v1", "model": "m"}
    config = make_config(str(tmp_path), models={"weak": served, "strong": served})
    with pytest.raises(ConfigError, match=r"served elsewhere.*baselines\.embedding\.sentence_transformer"):
        run_embedding(config, store, prompts)
    assert not (tmp_path / "embeddings").exists()


# An embeddings API ---------------------------------------------------------------------------------------------------


class EmbeddingsHandler(BaseHTTPRequestHandler):
    """Answers with each prompt's length, in reverse order; the first request of all is turned away."""

    requests: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.requests.append({**body, "path": self.path, "key": self.headers["authorization"]})
        data = [{"index": i, "embedding": [len(text), 1.0]} for i, text in enumerate(body["input"])]
        answer = json.dumps({"data": data[::-1]}).encode()
        self.send_response(503 if len(self.requests) == 1 else 200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


def test_an_embeddings_api_is_asked_in_batches_and_again_when_it_is_busy() -> None:
    server = HTTPServer(("127.0.0.1", 0), EmbeddingsHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = OpenAIEmbeddingConfig(base_url=f"http://127.0.0.1:{server.server_port}/v1")
    try:
        vectors = OpenAIEmbeddings(config, 2, "secret")(["a", "bb", "ccc"])
    finally:
        server.shutdown()
        server.server_close()
    assert vectors.tolist() == [[1, 1], [2, 1], [3, 1]]
    assert [request["input"] for request in EmbeddingsHandler.requests] == [["a", "bb"], ["a", "bb"], ["ccc"]]
    asked = {"model": "text-embedding-3-small", "path": "/v1/embeddings", "key": "Bearer secret"}
    assert asked.items() <= EmbeddingsHandler.requests[-1].items()


def test_an_api_gets_the_bare_questions_and_the_weak_model_the_prompts() -> None:
    assert EmbeddingConfig(openai=OpenAIEmbeddingConfig()).column == "question"  # as RouteLLM's model.py calls it
    assert EmbeddingConfig(openai=OpenAIEmbeddingConfig(), text="prompt").column == EmbeddingConfig().column == "prompt"


def test_questions_come_in_the_order_of_the_labels_and_one_that_is_missing_is_named(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    write(store.queries(), [query("a"), query("b"), query("c")])
    assert questions_of(store, pa.chunked_array([["c", "a"]])).to_pylist() == ["c?", "a?"]
    with pytest.raises(ArtifactError, match=r"lacks query 'z', which has a label.*baselines\.embedding\.text to prompt"):
        questions_of(store, pa.chunked_array([["a", "z"]]))


def test_a_key_that_is_not_set_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"baselines\.embedding\.openai\.api_key_env: .*MY_KEY is not set"):
        api_key(OpenAIEmbeddingConfig(api_key_env="MY_KEY"))
    monkeypatch.setenv("MY_KEY", "k\n")
    assert api_key(OpenAIEmbeddingConfig(api_key_env="MY_KEY")) == "k"


def test_a_sentence_transformers_model_pools_as_its_own_files_say(tmp_path: Path) -> None:
    """Mean pooling over the shipped weak model, saved as a sentence-transformers folder: the hidden states again."""
    models = pytest.importorskip("sentence_transformers.models")
    from sentence_transformers import SentenceTransformer

    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    tokenizer.chat_template = None  # it would be applied
    tokenizer.save_pretrained(tmp_path / "plain")
    AutoModelForCausalLM.from_pretrained(WEAK).save_pretrained(tmp_path / "plain")
    transformer = models.Transformer(str(tmp_path / "plain"), max_seq_length=64)
    pooling = models.Pooling(transformer.get_word_embedding_dimension(), "mean")
    folder = str(tmp_path / "sentence")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(folder)
    settings = EmbeddingConfig(device="cpu", sentence_transformer=folder)
    embed, wanted = make_embedder(Checkpoint.at(folder), settings), HiddenStates(Checkpoint.at(WEAK), settings)
    for prompt in ("Hi", "What is 2 plus 3?"):  # it strips texts, and would pad this model on the left
        np.testing.assert_allclose(embed([prompt]), wanted([prompt]), atol=1e-4)


def test_a_missing_sentence_transformers_package_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelError, match="pip install sentence-transformers"):
        make_embedder(Checkpoint.at("any"), EmbeddingConfig(device="cpu", sentence_transformer="any"))
