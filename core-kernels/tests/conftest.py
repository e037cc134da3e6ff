"""What the tests of several operators share."""

import pytest
import torch

from attn.core_kernels.testing import poisoned_memory  # noqa: F401


@pytest.fixture(
    params=[pytest.param("cpu", marks=pytest.mark.interpreter), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def device(request):
    """Where Triton kernels run: in the interpreter, or compiled on a GPU."""
    triton = pytest.importorskip("triton")
    if request.param == "cpu" and not triton.knobs.runtime.interpret:
        pytest.skip("needs TRITON_INTERPRET=1")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param
