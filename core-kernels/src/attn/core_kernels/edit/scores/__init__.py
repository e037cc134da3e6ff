"""Edits before the softmax: the scores changed by sign, distance or key."""

from attn.core_kernels.edit.scores.api import boost_keys, decay_outside_window

__all__ = ["boost_keys", "decay_outside_window"]
