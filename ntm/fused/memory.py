"""Reading and writing (ntm/memory.py, eq. 2-4), all heads of one sequence, forward and backward.

Backward is in three functions, so that each array is touched as rarely as can be: `head_pair_backward` has the
gradients of one read head with one write head; `read_write_backward` calls it for each such pair; `memory_backward` has
the gradient of the memory, of eq. 6 as well.

Shapes, with the letters of layout.py: memory (M, N), weighting (heads, N), erase, add and reads (R M), keys (H M).
"""

from ntm.fused.jit import jit
from ntm.fused.mathlib import copy, dot


@jit
def read(memory, weighting, reads):
    """eq. 2. Overwrites `reads` (R * M)."""
    width = memory.shape[0]
    for h in range(weighting.shape[0]):
        for m in range(width):
            reads[h * width + m] = dot(weighting[h], memory[m])


@jit
def write(memory, weighting, erase, add, new_memory):
    """eq. 3 and 4. Overwrites `new_memory`."""
    width, rows = memory.shape
    left = memory  # after the erasing so far
    for h in range(1, weighting.shape[0]):  # all heads erase ...
        for m in range(width):
            for n in range(rows):
                new_memory[m, n] = left[m, n] - left[m, n] * weighting[h, n] * erase[h * width + m]
        left = new_memory
    for m in range(width):  # (the first head erases last and adds first, in one pass)
        for n in range(rows):
            new_memory[m, n] = left[m, n] + weighting[0, n] * (add[m] - left[m, n] * erase[m])
    for h in range(1, weighting.shape[0]):  # ... before any adds
        for m in range(width):
            for n in range(rows):
                new_memory[m, n] += weighting[h, n] * add[h * width + m]


@jit
def head_pair_backward(
    memory, memory_before_erase, write_weighting, erase, add, d_reads, d_memory, d_read_weighting, d_write_weighting,
    d_erase, d_add,
):  # fmt: skip
    """The gradient of eq. 2, 3 and 4 for a read head with a write head, but for that of the memory.

    `memory_before_erase` is what the other write heads left. Accumulates into the gradients of the two weightings;
    overwrites `d_erase` and `d_add`.
    """
    width, rows = memory.shape
    for m in range(width):
        column, column_before, d_column = memory[m], memory_before_erase[m], d_memory[m]
        d_add_m = d_erased_m = memory.dtype.type(0)
        for n in range(rows):
            d_written = d_column[n] * write_weighting[n]
            d_add_m += d_written
            d_erased_m += d_written * column_before[n]
            d_write_weighting[n] += d_column[n] * (add[m] - erase[m] * column_before[n])
            d_read_weighting[n] += d_reads[m] * column[n]
        d_add[m] = d_add_m
        d_erase[m] = -d_erased_m


@jit
def read_write_backward(memory, weighting, erase, add, d_reads, d_memory, d_weighting, d_erase, d_add, before_erase):
    """The gradient of eq. 2, 3 and 4 but for that of the memory, which `memory_backward` has.

    `d_memory` is the gradient of M_t. Accumulates into `d_weighting`, of all heads; overwrites `d_erase`, `d_add` and
    `before_erase` (M, N), which is scratch.
    """
    width, rows = memory.shape
    num_read_heads = weighting.shape[0] // 2
    if num_read_heads == 1:  # there is nothing but the memory to erase
        head_pair_backward(
            memory, memory, weighting[1], erase, add, d_reads, d_memory, d_weighting[0], d_weighting[1], d_erase, d_add
        )
        return
    for h in range(num_read_heads):
        for m in range(width):
            copy(memory[m], before_erase[m])
        for other in range(num_read_heads):  # what this head had to erase: the memory, less what the other heads erased
            if other != h:
                for m in range(width):
                    for n in range(rows):
                        share_erased = weighting[num_read_heads + other, n] * erase[other * width + m]
                        before_erase[m, n] -= before_erase[m, n] * share_erased
        mine, writer = slice(h * width, (h + 1) * width), num_read_heads + h
        head_pair_backward(
            memory, before_erase, weighting[writer], erase[mine], add[mine], d_reads[mine], d_memory, d_weighting[h],
            d_weighting[writer], d_erase[mine], d_add[mine],
        )  # fmt: skip


@jit
def memory_backward(memory, weighting, erase, keys, d_reads, d_dot, row_norm_grad, key_norm_grad, d_memory, d_keys):
    """The memory's gradient by eq. 2, 3, 4 and 6. `d_memory` comes in as that of M_t and leaves as that of M_{t-1}.

    Overwrites `d_keys`. One pass for each read head with a write head; `row_norm_grad` counts once, and is left at 0.
    `d_dot`, `row_norm_grad` and `key_norm_grad` are as `addressing.content_weighting_backward` made them.
    """
    width, rows = memory.shape
    num_read_heads, zero = weighting.shape[0] // 2, memory.dtype.type(0)
    for h in range(1, num_read_heads):  # all heads erase before any adds
        for m in range(width):
            for n in range(rows):
                d_memory[m, n] -= d_memory[m, n] * weighting[num_read_heads + h, n] * erase[h * width + m]
    for h in range(num_read_heads):
        writer = num_read_heads + h
        d_dot_read, d_dot_write = d_dot[h], d_dot[writer]
        read_weighting, write_weighting = weighting[h], weighting[writer]
        key_read, key_write = keys[h * width : (h + 1) * width], keys[writer * width : (writer + 1) * width]
        d_key_read, d_key_write = d_keys[h * width : (h + 1) * width], d_keys[writer * width : (writer + 1) * width]
        e, d_read = erase[h * width : (h + 1) * width], d_reads[h * width : (h + 1) * width]
        erases_here = memory.dtype.type(h == 0)  # 1 or 0: the others have erased above
        for m in range(width):
            d_key_read_m = d_key_write_m = zero
            column, d_column = memory[m], d_memory[m]
            for n in range(rows):
                d_key_read_m += d_dot_read[n] * column[n]
                d_key_write_m += d_dot_write[n] * column[n]
                through_erase = d_column[n] - d_column[n] * write_weighting[n] * e[m] * erases_here
                by_read = d_read[m] * read_weighting[n]
                by_keys = d_dot_read[n] * key_read[m] + d_dot_write[n] * key_write[m]
                d_column[n] = through_erase + by_read + by_keys - row_norm_grad[n] * column[n]
            d_key_read[m] = d_key_read_m - key_norm_grad[h] * key_read[m]
            d_key_write[m] = d_key_write_m - key_norm_grad[writer] * key_write[m]
        row_norm_grad[:] = zero
