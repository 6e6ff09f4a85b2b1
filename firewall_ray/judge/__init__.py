"""A model as a grader: what it is asked, how its answer is read, what is kept of it.

Light: no Ray. `stages/judging.py` runs a `Judge` as an actor beside the grading tasks.
"""
