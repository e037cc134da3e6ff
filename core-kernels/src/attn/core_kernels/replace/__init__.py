"""Operators that take the place of softmax attention."""
