"""What answers cost and saved, and how much may be spent: priced on ingress replicas, added up by the shared one."""
