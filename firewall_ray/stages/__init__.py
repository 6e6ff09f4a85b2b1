"""The way of the data: a stage a module, named by its verb."""
