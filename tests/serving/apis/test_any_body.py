"""Whatever JSON comes, it is answered or refused with a 4xx that names a field in the client's own words; never a 500."""

from typing import Any

import pytest
from chat_fakes import ChatFakes
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = [
    "model",
    "messages",
    "role",
    "content",
    "type",
    "text",
    "system",
    "tools",
    "tool_choice",
    "name",
    "input_schema",
    "source",
    "url",
    "media_type",
    "data",
    "max_tokens",
    "stream",
    "stop_sequences",
    "thinking",
    "output_config",
    "format",
    "schema",
    "id",
    "input",
    "tool_use_id",
    "instructions",
    "call_id",
    "arguments",
    "output",
    "image_url",
    "include",
    "reasoning",
    "effort",
    "metadata",
    "x",
]
WORDS = [
    "firewall",
    "user",
    "assistant",
    "system",
    "text",
    "image",
    "tool_use",
    "tool_result",
    "base64",
    "url",
    "auto",
    "tool",
    "none",
    "message",
    "function",
    "function_call",
    "function_call_output",
    "input_text",
    "output_text",
    "input_image",
    "json_schema",
]
leaves = st.sampled_from([None, True, False, 0, 7, -1, 0.5, "", *WORDS])
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)
START: dict[str, dict[str, Any]] = {
    "messages": {"model": "firewall", "max_tokens": 9, "messages": [{"role": "user", "content": "Why?"}]},
    "responses": {"model": "firewall", "input": "Why?"},
}


@pytest.mark.parametrize("endpoint", ["messages", "responses"])
@given(changes=st.dictionaries(st.sampled_from(NAMES), values, max_size=3))
@settings(max_examples=300, deadline=None)
def test_no_body_is_a_failure_of_ours(endpoint: str, changes: dict[str, Any]) -> None:
    fakes = ChatFakes()
    response = fakes.post(f"/v1/{endpoint}", START[endpoint] | changes)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code == 200:
        assert len(fakes.weak.bodies) + len(fakes.strong.bodies) == 1
    else:
        assert response.json()["error"]["message"]
        assert fakes.weak.bodies == fakes.strong.bodies == []
