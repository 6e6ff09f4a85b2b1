"""The serving application on Ray Serve: a router, a weak and a strong LLM behind one OpenAI-compatible endpoint."""
