"""Feature maps against their equations as float64 loops, and against what holds by mathematics."""

import math

import pytest
import torch

from attn.hedgehog.feature_maps import (
    FEATURE_MAPS,
    CosformerFeatureMap,
    EluFeatureMap,
    ExpFeatureMap,
    FeatureMap,
    HeadwiseLinear,
    HedgehogFeatureMap,
    PerformerFeatureMap,
    ReluFeatureMap,
    T2RFeatureMap,
    TaylorFeatureMap,
    feature_map,
    orthogonal_gaussian,
    query_key_maps,
)

HEADS, HEAD_DIM, TOKENS = 3, 5, 7
ACTIVATIONS = ("softmax_dim", "exp", "exp_dim", "joint_softmax")


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomize(module, seed=1):
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def by_token(feature, x, *sizes):
    """The features that `feature(list of floats, head, position)` gives for every token, one token at a time."""
    rows = [
        [[feature(x[b, h, i].tolist(), h, i) for i in range(x.shape[2])] for h in range(x.shape[1])]
        for b in range(x.shape[0])
    ]
    return torch.tensor(rows, dtype=torch.float64)


def affine(linear, row, head):
    weight, bias = linear.weight.tolist(), None if linear.bias is None else linear.bias.tolist()
    head = 0 if len(weight) == 1 else head
    u = [sum(row[d] * weight[head][d][f] for d in range(len(row))) for f in range(len(weight[head][0]))]
    return u if bias is None else [u[f] + bias[head][0][f] for f in range(len(u))]


def softmax(u):
    total = sum(math.exp(value) for value in u)
    return [math.exp(value) / total for value in u]


def hedgehog_equation(u, activation, negation):
    minus = [-value for value in u]
    if activation == "exp":
        return [math.exp(v) for v in u] + ([math.exp(v) for v in minus] if negation else [])
    if activation == "exp_dim":
        positive = [max(math.exp(v - max(u)), 1e-12) for v in u]
        return positive + ([max(math.exp(-v + min(u)), 1e-12) for v in u] if negation else [])
    if activation == "softmax_dim":
        return [max(v, 1e-12) for v in softmax(u) + (softmax(minus) if negation else [])]
    return softmax([2 * v for v in u] + ([2 * v for v in minus] if negation else []))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("negation", [True, False])
@pytest.mark.parametrize(("heads", "feature_dim", "bias"), [(HEADS, None, False), (HEADS, 4, True), (1, 6, True)])
def test_hedgehog_equals_its_equations(activation, negation, heads, feature_dim, bias):
    phi = HedgehogFeatureMap(heads, HEAD_DIM, feature_dim, activation=activation, negation=negation, bias=bias)
    randomize(phi)
    x = draw(2, HEADS, TOKENS, HEAD_DIM)
    expected = by_token(lambda row, h, i: hedgehog_equation(affine(phi.projection, row, h), activation, negation), x)
    assert expected.shape[-1] == phi.num_features
    torch.testing.assert_close(phi(x), expected)


def test_softmax_halves_sum_to_one():
    features = randomize(HedgehogFeatureMap(HEADS, HEAD_DIM))(draw(2, HEADS, TOKENS, HEAD_DIM))
    for half in features.chunk(2, dim=-1):
        torch.testing.assert_close(half.sum(dim=-1), torch.ones(2, HEADS, TOKENS, dtype=torch.float64))


def test_softmax_features_keep_their_floor():
    features = HedgehogFeatureMap(HEADS, HEAD_DIM)(draw(2, HEADS, TOKENS, HEAD_DIM, scale=1e4))
    assert features.isfinite().all()
    assert features.min() == 1e-12


def test_before_training_the_features_are_those_of_x():
    x = draw(2, HEADS, TOKENS, HEAD_DIM)
    assert torch.equal(
        HedgehogFeatureMap(HEADS, HEAD_DIM).double()(x), torch.cat([x.softmax(dim=-1), (-x).softmax(dim=-1)], dim=-1)
    )


def test_a_skip_connection_is_the_same_map_with_the_identity_added():
    phi, x = randomize(HedgehogFeatureMap(HEADS, HEAD_DIM)), draw(2, HEADS, TOKENS, HEAD_DIM)
    skip = x + torch.einsum("bhtd,hdf->bhtf", x, phi.projection.weight - torch.eye(HEAD_DIM))
    torch.testing.assert_close(phi.projection(x), skip)


@pytest.mark.parametrize("feature_dim", [3, HEAD_DIM, 8])
def test_identity_initialization_copies_what_fits(feature_dim):
    u = HeadwiseLinear(HEADS, HEAD_DIM, feature_dim, bias=True).double()(x := draw(2, HEADS, TOKENS, HEAD_DIM))
    kept = min(feature_dim, HEAD_DIM)
    assert torch.equal(u[..., :kept], x[..., :kept])
    assert not u[..., kept:].any()


def test_kaiming_initialization_has_the_variance_of_its_distribution():
    weight = HeadwiseLinear(8, 64, 64, init="kaiming").weight
    bound = math.sqrt(6 / 64**2)
    assert weight.abs().max() <= bound
    # The variance of n uniform draws on [-b, b] is b^2/3 with standard error b^2/3 * sqrt(0.8 / n): five of them.
    assert abs(weight.var() / (bound**2 / 3) - 1) < 5 * math.sqrt(0.8 / weight.numel())


@pytest.mark.parametrize(
    ("phi", "equation"),
    [
        (EluFeatureMap(HEADS, HEAD_DIM), lambda u, i: [1 + v if v > 0 else math.exp(v) for v in u]),
        (EluFeatureMap(HEADS, HEAD_DIM, learned=True), lambda u, i: [1 + v if v > 0 else math.exp(v) for v in u]),
        (ReluFeatureMap(HEADS, HEAD_DIM), lambda u, i: [max(v, 1e-12) for v in u]),
        (ReluFeatureMap(HEADS, HEAD_DIM, learned=True), lambda u, i: [max(v, 1e-12) for v in u]),
        (T2RFeatureMap(HEADS, HEAD_DIM), lambda u, i: [max(v, 1e-12) for v in u]),
        (T2RFeatureMap(HEADS, HEAD_DIM, 9, bias=False), lambda u, i: [max(v, 1e-12) for v in u]),
        (ExpFeatureMap(HEADS, HEAD_DIM), lambda u, i: [math.exp(v) for v in u]),
        (ExpFeatureMap(HEADS, HEAD_DIM, t=2.0), lambda u, i: [math.exp(2 * v) for v in u]),
        (
            TaylorFeatureMap(HEADS, HEAD_DIM),
            lambda u, i: [1.0] + [v / 5**0.25 for v in u] + [v * w / math.sqrt(5) / math.sqrt(2) for v in u for w in u],
        ),
        (
            CosformerFeatureMap(HEADS, HEAD_DIM, max_positions=TOKENS),
            lambda u, i: (
                [max(v, 1e-12) * math.cos(math.pi * i / (2 * TOKENS)) for v in u]
                + [max(v, 1e-12) * math.sin(math.pi * i / (2 * TOKENS)) for v in u]
            ),
        ),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, FeatureMap) else "",
)
def test_baselines_equal_their_equations(phi, equation):
    randomize(phi)
    x = draw(2, HEADS, TOKENS, HEAD_DIM)

    def feature(row, head, position):
        u = row if isinstance(phi.projection, torch.nn.Identity) else affine(phi.projection, row, head)
        return equation(u, position)

    expected = by_token(feature, x)
    assert expected.shape[-1] == phi.num_features
    torch.testing.assert_close(phi(x), expected)


@pytest.mark.parametrize("stabilize", [False, True])
def test_performer_equals_its_equation(stabilize):
    phi = PerformerFeatureMap(HEADS, HEAD_DIM, 8, seed=3, stabilize=stabilize)
    omega = phi.random_features.double().tolist()

    def feature(row, head, position):
        x = [v / HEAD_DIM**0.25 for v in row]
        exponents = [
            sum(w * v for w, v in zip(line, x, strict=True)) - sum(v * v for v in x) / 2 for line in omega[head]
        ]
        shift = max(exponents) if stabilize else 0.0
        return [math.exp(e - shift) / math.sqrt(8) for e in exponents]

    x = draw(2, HEADS, TOKENS, HEAD_DIM)
    torch.testing.assert_close(phi(x), by_token(feature, x))


def test_performer_estimates_the_exponential_kernel_without_bias():
    heads = 4000  # as many independent draws of Omega
    phi = PerformerFeatureMap(heads, HEAD_DIM, 10, seed=5)
    query, key = draw(HEAD_DIM, seed=1), draw(HEAD_DIM, seed=2)
    features = phi(torch.stack([query, key]).expand(1, heads, 2, HEAD_DIM))
    estimates = features.prod(dim=2).sum(dim=-1).squeeze(0)
    exact = math.exp(query @ key / math.sqrt(HEAD_DIM))
    standard_error = estimates.std() / math.sqrt(heads)
    assert abs(estimates.mean() - exact) < 4 * standard_error
    assert standard_error < 0.02 * exact  # or the test would accept anything


def test_performer_rows_are_orthogonal_within_a_block_and_differ_between_heads():
    omega = orthogonal_gaussian(2, 8, HEAD_DIM, seed=0)
    for block in omega[:, :HEAD_DIM], omega[:, HEAD_DIM:]:
        gram = block @ block.mT
        assert (gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-5
    assert not torch.allclose(omega[0], omega[1])


def test_performer_queries_and_keys_share_omega_and_only_queries_are_stabilized():
    query_map, key_map = query_key_maps("performer", HEADS, HEAD_DIM, seed=4)
    assert torch.equal(query_map.random_features, key_map.random_features)
    assert (query_map.stabilize, key_map.stabilize) == (True, False)
    assert not torch.equal(key_map.random_features, PerformerFeatureMap(HEADS, HEAD_DIM, seed=5).random_features)


def test_taylor_kernel_is_the_second_order_expansion():
    phi, query, key = (
        TaylorFeatureMap(HEADS, HEAD_DIM),
        draw(1, HEADS, 4, HEAD_DIM),
        draw(1, HEADS, 6, HEAD_DIM, seed=1),
    )
    s = query @ key.mT / math.sqrt(HEAD_DIM)
    torch.testing.assert_close(phi(query) @ phi(key).mT, 1 + s + s**2 / 2)


def test_cosformer_kernel_is_the_reweighted_product():
    phi = CosformerFeatureMap(HEADS, HEAD_DIM, max_positions=9)
    query, key = draw(2, HEADS, TOKENS, HEAD_DIM), draw(2, HEADS, TOKENS, HEAD_DIM, seed=1)
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    expected = (query.clamp(min=1e-12) @ key.clamp(min=1e-12).mT) * torch.cos(math.pi * distance.double() / 18)
    torch.testing.assert_close(phi(query) @ phi(key).mT, expected)


def test_cosformer_takes_positions_per_token_or_per_sequence():
    phi, x = CosformerFeatureMap(HEADS, HEAD_DIM, max_positions=16), draw(2, HEADS, TOKENS, HEAD_DIM)
    shifted = phi(x, torch.arange(TOKENS) + 3)
    assert torch.equal(shifted[..., :4, :], phi(x[..., :4, :], torch.arange(3, 7)))
    per_sequence = phi(x, torch.stack([torch.arange(TOKENS), torch.arange(TOKENS) + 3]))
    assert torch.equal(per_sequence, torch.stack([phi(x)[0], shifted[1]]))


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_features_do_not_depend_on_other_tokens_or_sequences(name):
    phi, x = randomize(feature_map(name, HEADS, HEAD_DIM)), draw(2, HEADS, TOKENS, HEAD_DIM)
    alone = phi(x[1:, :, 4:5], torch.tensor([4]))
    torch.testing.assert_close(phi(x)[1:, :, 4:5], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_gradients_match_finite_differences(name):
    phi, x = randomize(feature_map(name, 2, 3)), draw(1, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: phi(x), (x, *phi.parameters()))


@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_activated_in_float32(name, dtype):
    phi, x = feature_map(name, HEADS, HEAD_DIM), draw(2, HEADS, TOKENS, HEAD_DIM).to(dtype)
    features = phi(x)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, phi(x.float()))


def test_queries_and_keys_have_parameters_of_their_own():
    query_map, key_map = query_key_maps("hedgehog", HEADS, HEAD_DIM)
    assert query_map.projection.weight is not key_map.projection.weight


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: feature_map("hedgehug", 1, 2), "name must be one of hedgehog, elu, .*, got 'hedgehug'"),
        (lambda: feature_map("hedgehog", 0, 2), "num_heads must be positive, got 0"),
        (lambda: feature_map("elu", 1, 0), "head_dim must be positive, got 0"),
        (lambda: feature_map("hedgehog", 1, 2, feature_dim=0), "feature_dim must be positive, got 0"),
        (lambda: feature_map("hedgehog", 1, 2, activation="sofmax"), "activation must be one of .*, got 'sofmax'"),
        (lambda: feature_map("t2r", 1, 2, init="zeros"), "init must be one of .*, got 'zeros'"),
        (lambda: feature_map("exp", 1, 2, t=float("nan")), "t must be positive, got nan"),
        (lambda: feature_map("performer", 1, 2, num_random_features=0), "num_random_features must be positive, got 0"),
        (lambda: feature_map("cosformer", 1, 2, max_positions=0), "max_positions must be positive, got 0"),
        (
            lambda: feature_map("elu", 2, 4)(torch.ones(1, 3, 5, 4)),
            r"shape \[batch, 2, tokens, 4\], got",
        ),
        (
            lambda: feature_map("elu", 1, 4)(torch.ones(3, 5, 4)),
            r"x must have the shape \[batch, heads, tokens, 4\]",
        ),
        (
            lambda: feature_map("cosformer", 1, 4, max_positions=5)(torch.ones(1, 1, 6, 4)),
            "positions must lie in 0 to max_positions - 1 = 4, got 0 to 5",
        ),
        (
            lambda: feature_map("cosformer", 1, 4)(torch.ones(2, 1, 6, 4), torch.arange(5)),
            r"positions must have the shape \[6\] or \[2, 6\], got \(5,\)",
        ),
    ],
)
def test_an_error_names_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
