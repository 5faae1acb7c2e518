"""Binary codes against obvious code: distances bit by bit, what a rotation keeps, what ITQ gains, round trips."""

import numpy as np
import pytest
import torch

from finetune.search.codes import HashHead, encode, gaussian, hamming, hamming_top, rotation


@pytest.fixture
def spread():
    """Unit vectors whose variance falls off from one direction to the next, as learned embeddings do."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 128)) * 0.95 ** np.arange(128)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def matrix(head):
    return head.linear.weight.detach().numpy().T


@pytest.mark.parametrize("bits", [64, 192])
def test_distance_is_the_number_of_signs_that_differ(spread, bits):
    map_EB = matrix(rotation(spread, bits))
    assert (map_EB.shape, map_EB.dtype) == ((128, bits), np.float32)
    codes = encode(spread, rotation(spread, bits))
    assert (codes.shape, codes.dtype) == ((600, bits // 64), np.uint64)
    signs = spread @ map_EB > 0
    slow = [[sum(a != b for a, b in zip(x, y, strict=True)) for y in signs[:40]] for x in signs[:3]]
    assert [hamming(code, codes[:40]).tolist() for code in codes[:3]] == slow


def test_top_is_a_full_sort(spread):
    codes = encode(spread, rotation(spread, 128))
    for row, found in enumerate(hamming_top(codes[:5], codes, 20)):
        distances = hamming(codes[row], codes)
        assert distances[found].tolist() == sorted(distances)[:20]
        assert found[0] == row, "itself, at distance 0"
    assert hamming_top(codes[:1], codes[:7], 20).shape == (1, 7)


def test_a_rotation_keeps_angles_and_itq_quantises_less(spread):
    long = matrix(rotation(spread, 256))
    assert np.allclose(long[:, :128].T @ long[:, :128], np.eye(128), atol=1e-5)
    short = matrix(rotation(spread, 64))
    assert np.allclose(short.T @ short, np.eye(64), atol=1e-5)

    def error(map_EB):
        x = (spread - spread.mean(0)) @ map_EB
        return ((np.sign(x) * np.abs(x).mean() - x) ** 2).sum() / (x**2).sum()

    covariance = np.cov((spread - spread.mean(0)).T)
    principal = np.linalg.eigh(covariance)[1][:, ::-1][:, :64]
    assert error(short) < error(principal) - 0.02  # measured: 0.35 against 0.42


def test_seeded(spread):
    first = matrix(rotation(spread, 64))
    assert (first == matrix(rotation(spread, 64))).all()
    assert (first != matrix(rotation(spread, 64, seed=1))).any()
    assert (matrix(gaussian(128, 64)) == matrix(gaussian(128, 64))).all()
    assert (matrix(gaussian(128, 64)) != matrix(gaussian(128, 64, seed=1))).any()


@pytest.mark.parametrize("hidden", [0, 24])
def test_a_head_comes_back_from_disk(hidden, spread, tmp_path):
    torch.manual_seed(0)
    head = HashHead(128, 64, hidden)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    head.save(tmp_path / "head.safetensors")
    again = HashHead.load(tmp_path / "head.safetensors")
    assert (again.embedding_dim, again.bits) == (128, 64)
    assert (encode(spread, again) == encode(spread, head)).all()
    x = np.sqrt(128) * torch.from_numpy(spread)
    slow = x @ head.linear.weight.T + head.linear.bias
    if hidden:
        inner = x @ head.inner.weight.T + head.inner.bias
        slow = slow + (0.5 * inner * (1 + torch.erf(inner / 2**0.5))) @ head.outer.weight.T + head.outer.bias
    assert torch.allclose(again(torch.from_numpy(spread)), slow, atol=1e-3)


def test_an_untrained_head_is_its_linear_map(spread):
    head, plain = HashHead(128, 64, 32), HashHead(128, 64)
    plain.linear.load_state_dict(head.linear.state_dict())
    assert (encode(spread, head) == encode(spread, plain)).all()
