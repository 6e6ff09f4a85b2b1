"""Weak or strong: what a request asks for, and what the router decides.

`replica` runs on router replicas, with `budget` and `drift`; `client`, `request` and `conversations` on ingress replicas.
"""
