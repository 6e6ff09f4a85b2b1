"""The way in: who may call, which path leads where, the page at `/`. Runs on ingress replicas."""
