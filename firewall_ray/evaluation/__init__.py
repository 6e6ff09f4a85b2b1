"""How good a router is: metrics, their intervals, and the report."""
