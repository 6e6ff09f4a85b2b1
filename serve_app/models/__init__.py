"""The pair of models. `client` and `remote` run on ingress replicas, `replica` on model replicas."""
