"""What happened to a request, for metrics, the decision log and the page. Runs on ingress replicas."""
