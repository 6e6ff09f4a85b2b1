"""What a run's YAML file may say: a section a module, `run.py` the whole."""
