"""What all ingress replicas know together: a deployment of one replica, and how the others ask it."""
