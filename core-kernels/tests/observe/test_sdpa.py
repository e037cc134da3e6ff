"""Where PyTorch's own kernels compute attention with its log-sum-exp, and that on CUDA they are called as they ask."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from attn.core_kernels import attention_with_lse
from attn.core_kernels.observe.softmax_map import api, sdpa
from attn.core_kernels.testing import assert_close


@pytest.fixture
def pretended_cuda(monkeypatch):
    """CUDA tensors without numbers, on a chip that has flash attention."""
    monkeypatch.setattr(sdpa, "_has_flash_attention", lambda _index: True)
    with FakeTensorMode():
        yield


def draw(queries=24, keys=24, *, heads=4, key_heads=4, head_dim=16, value_dim=16, dtype=torch.bfloat16, device="cuda"):
    shapes = (heads, queries, head_dim), (key_heads, keys, head_dim), (key_heads, keys, value_dim)
    return [torch.ones(2, *shape, dtype=dtype, device=device) for shape in shapes]


@pytest.mark.usefixtures("pretended_cuda")
@pytest.mark.parametrize(
    ("sizes", "rule", "chosen"),
    [
        ({}, {}, "torch"),
        ({}, {"causal": True}, "torch"),
        ({"key_heads": 2, "head_dim": 256, "value_dim": 256, "dtype": torch.float16}, {"scale": 0.3}, "torch"),
        ({"keys": 30}, {}, "torch"),
        ({"keys": 30}, {"causal": True}, "triton"),
        ({"value_dim": 8}, {}, "triton"),
        ({"head_dim": 20, "value_dim": 20}, {}, "triton"),
        ({"dtype": torch.float32}, {}, "triton"),
        ({}, {"window": 3}, "triton"),
        ({}, {"key_mask": True}, "triton"),
        ({"queries": 0}, {}, "triton"),
    ],
)
def test_auto_takes_the_maintained_kernel_on_cuda_where_it_computes_the_same(sizes, rule, chosen, monkeypatch):
    taken = []
    registered = api._registered
    monkeypatch.setattr(api, "_registered", lambda name: taken.append(name) or registered(name))
    rows = draw(**sizes)
    if "key_mask" in rule:
        rule = {"key_mask": torch.ones(2, rows[1].shape[2], dtype=torch.bool, device="cuda")}
    with torch.no_grad():
        attention_with_lse(*rows, **rule)
    assert taken.pop() == chosen
    attention_with_lse(rows[0].requires_grad_(), *rows[1:], **rule)
    assert taken.pop() == "triton"


@pytest.mark.usefixtures("pretended_cuda")
@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_kernel_for_cuda_is_called_with_arguments_that_it_takes(key_heads):
    rows = [x.mT.contiguous().mT for x in draw(key_heads=key_heads)]
    out, lse = sdpa.attend(*rows, 0.25, True, None)
    assert (out.shape, out.dtype, out.is_contiguous()) == ((2, 4, 24, 16), torch.bfloat16, True)
    assert (lse.shape, lse.dtype) == ((2, 4, 24), torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_cuda_it_equals_the_definition(causal, dtype):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(2, h, 100, 64, generator=generator).to("cuda", dtype) for h in (4, 2, 2)]
    actual = attention_with_lse(*rows, causal=causal)
    expected = attention_with_lse(*(x.double() for x in rows), causal=causal, impl="reference")
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, length=164)
