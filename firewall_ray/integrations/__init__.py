"""The metrics as modules of Hugging Face's `evaluate`: ``evaluate.load("firewall_ray/integrations/triviaqa")``.

A folder each, with the script and its card, as `evaluate` loads them; without a network. They only wrap what the package computes
with. Nothing in the package imports them; a run's config may name one.
"""
