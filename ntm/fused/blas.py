"""Matrix products: where BLAS is, and its call from compiled code."""

import ctypes
from collections.abc import Callable
from functools import cache

import llvmlite.binding
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic
from threadpoolctl import threadpool_limits

from ntm.fused.jit import jit


@cache
def _limit_all_blas(_: int) -> int:
    """Give NumPy's and SciPy's products one thread, once: their BLAS has no limit but for the whole process."""
    threadpool_limits(limits=1, user_api="blas")
    return 1


def _find_blas() -> Callable[[int], int]:
    """Register sgemm and dgemm: those of PyTorch's MKL, or SciPy's, half as fast where matrices have few rows.

    Returns:
        A function that sets how many threads BLAS uses for this thread's products, and returns the number before, or 0
        for the default.
    """
    try:
        pytorch = ctypes.CDLL(torch._C.__file__)
        limit, routines = pytorch.MKL_Set_Num_Threads_Local, (pytorch.sgemm_, pytorch.dgemm_)
        addresses = [ctypes.cast(routine, ctypes.c_void_p).value for routine in routines]
    except (AttributeError, OSError):  # PyTorch has another BLAS, or does not export it
        addresses = [get_cython_function_address("scipy.linalg.cython_blas", name) for name in ("sgemm", "dgemm")]
        limit = _limit_all_blas
    for name, address in zip(("ntm_sgemm", "ntm_dgemm"), addresses, strict=True):
        llvmlite.binding.add_symbol(name, address)
    return limit


set_blas_threads = _find_blas()


@intrinsic
def gemm(_, flip_a, flip_b, rows, columns, inner, alpha, a, a_stride, b, b_stride, beta, c, c_stride):
    """BLAS: c = alpha a b + beta c, of matrices stored column by column; it takes everything by address."""
    kind, n = alpha, types.int32
    name = {types.float32: "ntm_sgemm", types.float64: "ntm_dgemm"}[kind]

    def call(context, builder, signature, values):
        addresses = [
            context.make_array(kind)(context, builder, value).data
            if isinstance(kind, types.Array)
            else cgutils.alloca_once_value(builder, value)
            for kind, value in zip(signature.args, values, strict=True)
        ]
        routine = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t] * len(addresses))
        routine = cgutils.get_or_insert_function(builder.module, routine, name)
        builder.call(routine, [builder.bitcast(address, cgutils.voidptr_t) for address in addresses])
        return context.get_dummy_value()

    return types.void(types.uint8, types.uint8, n, n, n, kind, a, n, b, n, kind, c, n), call


NO_TRANS, TRANS = np.uint8(ord("N")), np.uint8(ord("T"))


@jit
def stride(a):
    """From a row to the next, in numbers; those of a row lie side by side."""
    return a.strides[0] // a.itemsize


@jit
def matmul(a, b, accumulate, out):
    """out = a @ b + accumulate * out. (Stored by columns, a matrix is its transpose: so out' = b' a'.)"""
    kind = out.dtype.type
    rows, columns, inner = out.shape[0], out.shape[1], a.shape[1]
    one, beta = kind(1), kind(accumulate)
    gemm(NO_TRANS, NO_TRANS, columns, rows, inner, one, b, stride(b), a, stride(a), beta, out, stride(out))


@jit
def matmul_tn(a, b, accumulate, out):
    """out = a.T @ b + accumulate * out."""
    kind = out.dtype.type
    rows, columns, inner = out.shape[0], out.shape[1], a.shape[0]
    one, beta = kind(1), kind(accumulate)
    gemm(NO_TRANS, TRANS, columns, rows, inner, one, b, stride(b), a, stride(a), beta, out, stride(out))
