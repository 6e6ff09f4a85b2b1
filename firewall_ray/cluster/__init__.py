"""What runs work on a Ray cluster: pools of actors, who may begin, what is seen of it meanwhile."""
