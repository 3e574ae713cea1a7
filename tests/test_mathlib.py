"""ntm/fused/mathlib.py: exp and log in float32, from end to end of their ranges, against NumPy in float64."""

import numba
import numpy as np
import pytest

from ntm.fused import mathlib


@numba.njit
def exp(x, out):
    for i in range(len(x)):
        out[i] = mathlib.exp(x[i])
    return out


@numba.njit
def log(x, out):
    for i in range(len(x)):
        out[i] = mathlib.log(x[i])
    return out


@numba.njit
def reduce_max(a):
    return mathlib.reduce_max(a)


def test_exp_over_its_whole_range():
    x = np.linspace(-87, 88, 100_001, dtype=np.float32)
    assert np.abs(exp(x, np.empty_like(x)) / np.exp(x.astype(np.float64)) - 1).max() < 3e-7
    outside = np.array([0, -1e30, -np.inf, 1e30, np.inf, np.nan], np.float32)
    one, *low, high, highest, nothing = exp(outside, np.empty_like(outside))
    assert one == 1
    lowest_and_highest = exp(x[[0, -1]], np.empty(2, np.float32))  # held at the ends: never 0, never infinite
    assert [*low, high, highest] == [*[lowest_and_highest[0]] * 2, *[lowest_and_highest[1]] * 2]
    assert np.isnan(nothing)


def test_log_over_its_whole_range():
    x = np.exp(np.linspace(np.log(2.0**-53), np.log(1e38), 100_001)).astype(np.float32)
    theirs = np.log(x.astype(np.float64))
    error = np.abs(log(x, np.empty_like(x)) - theirs)
    assert (error < 1.2e-7 * np.maximum(1, np.abs(theirs))).all()
    assert log(np.ones(1, np.float32), np.empty(1, np.float32)) == 0


def test_in_float64_they_are_the_c_librarys():
    x = np.array([0.5, 1.5, 700])
    np.testing.assert_allclose(exp(x, np.empty(3)), np.exp(x), rtol=1e-15)
    np.testing.assert_allclose(log(x, np.empty(3)), np.log(x), rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_number_wherever_it_stands(dtype):
    numbers = np.random.default_rng(0).normal(size=37).astype(dtype)
    for at in range(37):
        for top in (5.0, -0.0, -1e30):
            a = -np.abs(numbers) - 1 if top > -1 else np.full(37, -2e30, dtype)
            a[at] = top
            assert reduce_max(a.astype(dtype)) == dtype(top)
