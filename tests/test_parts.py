"""FDW, KSM and FBM, each alone."""

import copy
import pickle

import literal
import numpy as np
import pytest
import torch
from conftest import randomize, relative_error
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fdconv_zoo import FourierDisjointWeight, FrequencyBandModulation, KernelSpatialModulation
from fdconv_zoo.layers.fdw import frequency_groups
from fdconv_zoo.ops import low_pass_basis

channels = st.integers(1, 9)
taps = st.integers(1, 5)


@given(rows=st.integers(1, 24), cols=st.integers(1, 24), data=st.data())
def test_groups_match_the_literal_definition(rows, cols, data):
    n = data.draw(st.integers(1, rows * (cols // 2 + 1)))
    groups = frequency_groups(rows, cols, n)
    assert np.array_equal(groups, literal.frequency_groups(rows, cols, n))
    sizes = np.bincount(groups.flatten())
    assert len(sizes) == n
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(("n", "dtype"), [(256, np.uint8), (257, np.int16), (40000, np.int32)])
def test_groups_use_the_smallest_integer_type(n, dtype):
    groups = frequency_groups(300, 300, n)
    assert groups.dtype == dtype
    assert groups.max() == n - 1


@given(o=channels, i=channels, a=taps, b=taps, data=st.data())
def test_fdw_is_the_sum_of_separate_inverse_transforms(o, i, a, b, data):
    n = data.draw(st.integers(1, min(o * a * (i * b // 2 + 1), 8)))
    fdw = FourierDisjointWeight(o, i, (a, b), n, dtype=torch.float64)
    # Training leaves the coefficients non-Hermitian: draw all of them freely.
    nn.init.normal_(fdw.spectrum)
    attention = torch.rand(2, n, dtype=torch.float64)
    kernels = fdw(attention)
    assert kernels.shape == (2, o, i, a, b)
    for kernel, weights in zip(kernels, attention, strict=True):
        expected = literal.disjoint_weight(fdw.spectrum.detach().numpy(), (o, i, a, b), n, weights.numpy())
        np.testing.assert_allclose(kernel.detach().numpy(), expected, rtol=0, atol=1e-10 * max(abs(expected).max(), 1))


@given(o=channels, i=channels, a=taps, b=taps)
def test_fdw_returns_the_kernel_it_was_given(o, i, a, b):
    fdw = FourierDisjointWeight(o, i, (a, b), 1)
    kernel = torch.randn(o, i, a, b)
    fdw.load_kernel(kernel)
    assert relative_error(fdw()[0], kernel) < 1e-6


def test_fdw_kernels_have_disjoint_spectra():
    fdw = FourierDisjointWeight(8, 6, (3, 3), 4)
    kernels = fdw(torch.eye(4)).transpose(2, 3).reshape(4, 24, 18)
    energy = torch.fft.rfft2(kernels).abs() > 1e-4 * fdw.spectrum.abs().max() * fdw.scale * 4
    # In the two real columns a real kernel mirrors each coefficient to its conjugate, maybe in the next group.
    assert (energy[..., 1:-1].sum(0) <= 1).all()
    assert energy.any((1, 2)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (64, 64, 1, 1), (33, 20, 3, 3)])
def test_fdw_is_the_same_on_a_gpu(shape):
    fdw = FourierDisjointWeight(shape[0], shape[1], shape[2:], 8)
    nn.init.normal_(fdw.spectrum)  # non-Hermitian, which some transforms of a GPU read differently
    attention = torch.rand(2, 8)
    expected = fdw(attention)
    assert relative_error(fdw.cuda()(attention.cuda()).cpu(), expected) < 1e-5


def test_fdw_buffers_are_derived():
    fdw = FourierDisjointWeight(8, 6, (3, 3), 4)
    assert set(fdw.state_dict()) == {"spectrum"}
    empty = FourierDisjointWeight(8, 6, (3, 3), 4, device="meta").to_empty(device="cpu")
    assert torch.equal(empty.group_index, fdw.group_index)


@pytest.mark.parametrize("n", [0, -1, 4 * 5 + 1])
def test_fdw_names_the_range_of_num_kernels(n):
    with pytest.raises(ValueError, match=rf"num_kernels is {n}.* between 1 and 20"):
        FourierDisjointWeight(4, 8, (1, 1), n)


def test_fresh_ksm_is_neutral():
    ksm = KernelSpatialModulation(6, 8, (3, 3), num_kernels=4, groups=2)
    modulators = ksm(torch.randn(5, 6))
    assert torch.equal(modulators.kernel, torch.full((5, 4), 0.25))
    assert torch.equal(modulators.channel, torch.ones(5, 6))
    assert torch.equal(modulators.filter, torch.ones(5, 8))
    assert torch.equal(modulators.spatial, torch.ones(5, 3, 3))
    assert torch.equal(modulators.local, torch.ones(5, 8, 3, 3, 3))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_ksm_matches_the_literal_definition(groups):
    ksm = KernelSpatialModulation(
        12, 18, (3, 1), num_kernels=4, groups=groups, temperature=0.7, kernel_temperature=1.9, dtype=torch.float64
    )
    randomize(ksm).eval()
    pooled = torch.randn(3, 12, dtype=torch.float64)
    modulators = ksm(pooled)
    params = {key: value.detach().numpy() for key, value in ksm.state_dict().items()}
    for row in range(3):
        expected = literal.global_modulators(params, pooled[row].numpy(), 0.7, 1.9, 4)
        expected["spatial"] = expected["spatial"].reshape(3, 1)
        expected["local"] = literal.local_modulator(params, pooled[row].numpy(), (18, 12 // groups, 3, 1), groups)
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(modulators, name)[row].detach().numpy(), value, rtol=1e-9)


@pytest.mark.parametrize(("global_branch", "local_branch"), [(True, False), (False, True), (False, False)])
def test_ksm_branches_switch_off(global_branch, local_branch):
    modulators = KernelSpatialModulation(6, 8, (3, 3), 4, global_branch=global_branch, local_branch=local_branch)(
        torch.randn(2, 6)
    )
    assert (modulators.channel is not None) is global_branch
    assert (modulators.kernel is not None) is global_branch
    assert (modulators.local is not None) is local_branch


def test_ksm_of_one_image_uses_running_statistics_and_trains():
    ksm = randomize(KernelSpatialModulation(6, 8, (3, 3), 4))
    pooled = torch.randn(1, 6)
    trained, evaluated = ksm.train()(pooled), ksm.eval()(pooled)
    for a, b in zip(trained, evaluated, strict=True):
        assert torch.equal(a, b)
    sum(modulator.sum() for modulator in trained).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in ksm.parameters())


def test_ksm_of_a_batch_trains_on_batch_statistics():
    ksm = randomize(KernelSpatialModulation(6, 8, (3, 3), 4)).train()
    before = ksm.global_branch.norm.running_mean.clone()
    ksm(torch.randn(4, 6))
    assert not torch.equal(before, ksm.global_branch.norm.running_mean)


@given(size=st.integers(1, 70), cutoff=st.sampled_from([1 / 2, 1 / 3, 1 / 4, 1 / 8, 0.1, 1 / 16]))
def test_low_pass_basis_projects_onto_frequencies_below_the_cutoff(size, cutoff):
    basis = low_pass_basis(size, cutoff, device=torch.device("cpu"), dtype=torch.float64)
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=1e-12)
    impulses = np.eye(size)[None]
    keep = literal.frequencies(size) < cutoff
    expected = np.fft.ifft(np.fft.fft(impulses, axis=1) * keep[None, :, None], axis=1).real[0]
    np.testing.assert_allclose((basis @ basis.T).numpy(), expected, atol=1e-12)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    edges=st.sampled_from([(1 / 4, 1 / 8, 1 / 16), (0.5, 0.2), (0.3,), (0.4, 0.3, 0.2, 0.1)]),
)
def test_fbm_matches_full_ffts_and_masks_at_every_size(height, width, edges):
    fbm = randomize(FrequencyBandModulation(3, edges, dtype=torch.float64))
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    y = fbm(x)
    weight, bias = fbm.attention.weight.detach().numpy(), fbm.attention.bias.detach().numpy()
    for image, result in zip(x.numpy(), y.detach().numpy(), strict=True):
        np.testing.assert_allclose(result, literal.band_modulation(image, weight, bias, edges), atol=1e-11)


def test_fbm_default_edges_pass_what_the_authors_pass():
    """A quarter is cut off; an eighth and a sixteenth pass: seen in their recordings at 64x64."""
    edges = FrequencyBandModulation(1).band_edges
    kept = [
        (low_pass_basis(64, edge, device=torch.device("cpu"), dtype=torch.float64).shape[1] - 1) / 2 for edge in edges
    ]
    assert kept == [15, 8, 4]


def test_fresh_fbm_returns_its_input_bit_for_bit():
    x = torch.randn(2, 5, 13, 9)
    assert torch.equal(FrequencyBandModulation(5)(x), x)
    assert torch.equal(FrequencyBandModulation(5, band_mask="reference")(x), x)


def test_fbm_masks_agree_at_64x64_only():
    exact = randomize(FrequencyBandModulation(4))
    reference = FrequencyBandModulation(4, band_mask="reference")
    reference.load_state_dict(exact.state_dict())
    x = torch.randn(1, 4, 64, 64)
    assert relative_error(exact(x), reference(x)) < 1e-6
    x = torch.randn(1, 4, 56, 56)
    assert relative_error(exact(x), reference(x)) > 0.01


@pytest.mark.parametrize("edges", [(), (0.25, 0.25), (0.1, 0.2), (0.6, 0.1), (0.2, 0.0), (0.2, -0.1)])
def test_fbm_refuses_edges_that_do_not_fall(edges):
    with pytest.raises(ValueError, match="band_edges"):
        FrequencyBandModulation(3, edges)


def test_fbm_refuses_an_unknown_mask():
    with pytest.raises(ValueError, match=r"'round'.*exact.*reference"):
        FrequencyBandModulation(3, band_mask="round")


@pytest.mark.parametrize(
    "module",
    [FourierDisjointWeight(8, 6, (3, 3), 4), KernelSpatialModulation(6, 8, (3, 3), 4), FrequencyBandModulation(5)],
    ids=lambda module: type(module).__name__,
)
def test_parts_survive_copy_and_pickle(module):
    randomize(module)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), module.parameters(), strict=True))
        assert repr(twin) == repr(module)
