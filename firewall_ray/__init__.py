"""Firewall Routing on Ray: sample, label, train, evaluate and serve a query router between a weak and a strong LLM."""

__version__ = "0.1.0"
