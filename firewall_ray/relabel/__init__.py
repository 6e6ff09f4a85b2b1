"""Closing the loop: live queries become labels, and labels a router that must beat the one in service; see `run.py`."""
