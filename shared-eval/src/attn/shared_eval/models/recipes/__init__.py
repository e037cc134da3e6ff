"""The recipes of the models that several papers share."""
