from attn.core_kernels.testing import poisoned_memory  # noqa: F401
