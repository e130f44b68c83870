"""Linear operators: each with its true adjoint, compositions too; conjugate gradients against a direct solution."""

from __future__ import annotations

import pytest
import torch

from amodal.core.rng import Rng
from amodal.physics.linear import Linear, conjugate_gradients, identity, inner, mask, solve

B, N = 4, 6
KEPT = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 1, 0]]).bool()


def matrix(seed=0, rows=N, columns=N, dtype=torch.float64):
    """A matrix as an operator on [B, columns]."""
    a = Rng([seed]).normal(rows, columns)[0].to(dtype)
    if dtype.is_complex:
        a = a + 1j * Rng([seed + 100]).normal(rows, columns)[0].to(dtype)
    return Linear(lambda x: x.to(a.dtype) @ a.T, lambda y: y @ a.conj(), f"matrix{seed}"), a


def fourier():
    forward = lambda x: torch.fft.fft(x.to(torch.complex128), norm="ortho")  # noqa: E731
    return Linear(forward, lambda y: torch.fft.ifft(y, norm="ortho"), "fourier")


OPERATORS = {
    "identity": (identity(), N, N),
    "mask": (mask(KEPT), N, N),
    "mask of one row": (mask(KEPT[0]), N, N),
    "tall": (matrix(1, 9)[0], N, 9),
    "wide": (matrix(2, 3)[0], N, 3),
    "fourier": (fourier(), N, N),
    "adjoint": (matrix(3, 9)[0].H, 9, N),
    "two": (mask(KEPT) @ matrix(4)[0], N, N),
    "three": (mask(KEPT) @ fourier() @ matrix(5, dtype=torch.complex128)[0], N, N),
    "adjoint of two": ((matrix(6, 9)[0] @ mask(KEPT)).H, 9, N),
}


def draw(seed, width, complex_=False):
    x = Rng([seed]).normal(B, width)[0].double()
    return x + 1j * Rng([seed + 50]).normal(B, width)[0].double() if complex_ else x


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_is_the_adjoint(name):
    """<A x, y> = <x, A^H y>, for each sample."""
    A, columns, rows = OPERATORS[name]
    complex_ = "fourier" in name or name == "three"
    x, y = draw(0, columns), draw(1, rows, complex_)
    torch.testing.assert_close(inner(A(x), y), inner(x.to(y.dtype), A.H(y)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_linear_and_keeps_samples_apart(name):
    A, columns, _ = OPERATORS[name]
    x, z = draw(2, columns), draw(3, columns)
    torch.testing.assert_close(A(2 * x - 3 * z), 2 * A(x) - 3 * A(z))
    changed = x.clone()
    changed[0] = 100
    assert torch.equal(A(changed)[1:], A(x)[1:])


def test_composition_applies_the_right_one_first_and_says_so():
    (A, a), (C, c) = matrix(7, 5), matrix(8)
    x = draw(4, N)
    torch.testing.assert_close((A @ C)(x), x @ (a @ c).T)
    assert (A @ C).name == "matrix7 @ matrix8" and A.H.name == "matrix7.H"
    torch.testing.assert_close((A @ C).H(draw(5, 5)), draw(5, 5) @ (a @ c))
    assert torch.equal(A.H.H(x), A(x))


def test_the_adjoint_of_the_adjoint_and_the_mask():
    x = draw(6, N)
    keep = mask(KEPT)
    assert torch.equal(keep.H(x), keep(x)) and torch.equal(keep(keep(x)), keep(x))
    assert torch.equal(keep(x)[0, KEPT[0]], x[0, KEPT[0]]) and (keep(x)[~KEPT] == 0).all()
    assert mask(KEPT)(x.float()).dtype == torch.float32
    x[0, 1] = torch.nan  # what is not kept may hold anything
    assert torch.isfinite(keep(x)).all()


def test_inner_is_one_real_number_a_sample():
    x, y = draw(0, N, True), draw(1, N, True)
    expected = (x.conj() * y).sum(1).real
    torch.testing.assert_close(inner(x, y), expected)
    big = torch.full((1, 10_000), 1e3) + torch.tensor([1e-3])
    assert inner(big, big).dtype == torch.float64


def positive(seed, n=N, complex_=False):
    """A well-conditioned Hermitian positive matrix a sample, and its action."""
    root = Rng.of(seed, B).normal(n, n).double()
    if complex_:
        root = root + 1j * Rng.of(seed + 1, B).normal(n, n).double()
    a = root @ root.mH / n + torch.eye(n, dtype=root.dtype)
    return a, lambda x: (a @ x[..., None])[..., 0]


@pytest.mark.parametrize("complex_", [False, True])
def test_conjugate_gradients_against_a_direct_solution(complex_):
    a, A = positive(0, complex_=complex_)
    b = draw(7, N, complex_)
    x = conjugate_gradients(A, b, torch.zeros_like(b), iterations=N)
    torch.testing.assert_close(x, torch.linalg.solve(a, b), rtol=1e-6, atol=1e-6)


def test_n_iterations_suffice_and_fewer_come_nearer_and_nearer():
    a, A = positive(1)
    b = draw(8, N)
    truth = torch.linalg.solve(a, b)
    errors = []
    for k in range(N + 1):
        e = conjugate_gradients(A, b, torch.zeros_like(b), iterations=k, tolerance=1e-14) - truth
        errors.append(inner(e, A(e)))  # what conjugate gradients minimise
    errors = torch.stack(errors)
    assert (errors.diff(dim=0) <= 1e-12).all()
    assert (errors[N] < 1e-18).all() and (errors[1] > 1e-6).any()


def test_a_good_start_is_kept():
    a, A = positive(1)
    b = draw(8, N)
    truth = torch.linalg.solve(a, b)
    calls = []
    out = conjugate_gradients(lambda x: (calls.append(1), A(x))[1], b, truth)
    assert torch.equal(out, truth) and len(calls) == 1


def test_a_samples_solution_does_not_depend_on_its_neighbours():
    """Easy and hard samples together: each is what it would be alone, to the bit."""
    a = torch.stack([torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([1.0] * 3, [1, 2, 3], [1, 100, 1e4])])
    b = torch.ones(3, 3, dtype=torch.float64)
    together = conjugate_gradients(lambda x: (a @ x[..., None])[..., 0], b, torch.zeros_like(b))
    for i in range(3):
        one = slice(i, i + 1)
        alone = conjugate_gradients(lambda x: (a[one] @ x[..., None])[..., 0], b[one], torch.zeros_like(b[one]))
        assert torch.equal(together[i], alone[0])


def test_a_sample_that_is_done_stands_still():
    a, A = positive(1)
    b = draw(8, N)
    begin = torch.linalg.solve(a, b) + 1e-9
    begin[1:] = 0
    out = conjugate_gradients(A, b, begin)
    assert torch.equal(out[0], begin[0])
    torch.testing.assert_close(out, torch.linalg.solve(a, b), rtol=1e-5, atol=1e-5)


def test_it_stops_when_the_residual_is_small_beside_the_right_hand_side():
    """Relative: the same number of evaluations whatever the units; and no more than the tolerance asks."""
    _, A = positive(2, n=40)
    b = torch.stack([Rng([i]).normal(40)[0] for i in range(B)]).double()
    used = {}
    for tolerance in (1e-1, 1e-3, 1e-9):
        for unit in (1.0, 1e-6, 1e6):
            calls = []
            x = conjugate_gradients(lambda v: (calls.append(1), A(v))[1], unit * b, 0 * b, 100, tolerance)
            relative = (unit * b - A(x)).norm(dim=1) / (unit * b).norm(dim=1)
            assert (relative <= tolerance * (1 + 1e-6)).all()
            used.setdefault(tolerance, set()).add(len(calls))
    assert all(len(numbers) == 1 for numbers in used.values())
    (few,), (more,), (most,) = used[1e-1], used[1e-3], used[1e-9]
    assert few < more < most < 60


def test_nothing_to_do_gives_nothing():
    _, A = positive(2)
    zero = torch.zeros(B, N, dtype=torch.float64)
    out = conjugate_gradients(A, zero, zero)
    assert torch.equal(out, zero)


def test_float32_is_enough():
    a, A = positive(3)
    b = draw(9, N)
    out = conjugate_gradients(lambda x: A(x.double()).float(), b.float(), torch.zeros(B, N))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), torch.linalg.solve(a, b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
def test_solve_is_the_regularised_least_squares(gamma):
    """argmin 1/2 ||A z - y||^2 + gamma/2 ||z - x||^2 = (A^T A + gamma)^-1 (A^T y + gamma x)."""
    A, a = matrix(10, 4)
    x, y = draw(10, N), draw(11, 4)
    expected = torch.linalg.solve(a.T @ a + gamma * torch.eye(N).double(), (y @ a + gamma * x).T).T
    torch.testing.assert_close(solve(A, y, x, gamma), expected, rtol=1e-5, atol=1e-6)


def test_solve_on_images_of_any_shape():
    kept = Rng([1]).uniform(2, 3, 4, 5)[0] > 0.5
    x, y = Rng([2]).normal(2, 3, 4, 5)[0], Rng([3]).normal(2, 3, 4, 5)[0]
    out = solve(mask(kept), mask(kept)(y), x, 3.0)
    torch.testing.assert_close(out, torch.where(kept, (y + 3 * x) / 4, x))
