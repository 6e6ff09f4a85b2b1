"""OpenAI's Responses API, without state: POST /v1/responses."""
