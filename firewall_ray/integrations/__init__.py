"""The metrics as modules of Hugging Face's `evaluate`: ``evaluate.load("firewall_ray/integrations/triviaqa.py")``.

Loaded from their files, without a network. They only wrap what the package computes with, and nothing in it imports them.
"""
