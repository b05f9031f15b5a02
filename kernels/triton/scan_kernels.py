"""Triton kernels of the state-space dual scan (arXiv 2405.21060), by chunks of L tokens.

`chain` carries a state from chunk to chunk, forwards for states and backwards for their gradients; `outputs` and the
kernels of gradients then take all chunks at once. A state lies in registers as (N, P), so that every product has at
least 64 rows, what the matrix units of Hopper take. Letters as in ops.py; R = H / G heads share B and C, BP and BN are
P and N rounded up.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _steps(DT, BIAS, A, SEG, h, start, T, dt_t, L: tl.constexpr, HAS_SEG: tl.constexpr):
    """Of the chunk that begins at `start` of the row that DT and SEG point at: raw steps with their bias, steps, summed
    log decays, and the decays from the chunk's start to each token, from each token to its end, and over all of it; 0
    across the start of a document."""
    l = tl.arange(0, L)
    inside = l < T - start
    z = tl.load(DT + start * dt_t + l * dt_t + h, mask=inside, other=0.0).to(tl.float32)
    z += tl.load(BIAS + h).to(tl.float32)
    e = tl.exp(tl.minimum(z, 20.0))
    # log(1 + e) keeps few digits of a small e: its error is that of 1 + e, which the quotient takes out again
    more = 1.0 + e
    small = tl.where(more == 1.0, e, tl.log(more) * (e / tl.where(more == 1.0, 1.0, more - 1.0)))
    step = tl.where(inside, tl.where(z > 20.0, z, small), 0.0)
    total = tl.cumsum(step * tl.load(A + h).to(tl.float32), 0)
    last = tl.sum(tl.where(l == L - 1, total, 0.0), 0)
    from_start, to_end, whole = tl.exp(total), tl.exp(last - total), tl.exp(last)
    if HAS_SEG:
        own = tl.load(SEG + start + tl.minimum(l, T - start - 1))
        before = tl.load(SEG + tl.maximum(start - 1, 0))
        end = tl.load(SEG + tl.minimum(start + L, T) - 1)
        from_start = tl.where(own == before, from_start, 0.0)
        to_end = tl.where(own == end, to_end, 0.0)
        whole = tl.where(end == before, whole, 0.0)
    return z, step, total, from_start, to_end, whole


@triton.jit
def _within(total, SEG, start, T, L: tl.constexpr, HAS_SEG: tl.constexpr):
    """(L, L) decay from token j to token i; 0 where j comes after i or belongs to another document."""
    l = tl.arange(0, L)
    decay = tl.exp(tl.minimum(total[:, None] - total[None, :], 0.0))
    keep = l[:, None] >= l[None, :]
    if HAS_SEG:
        own = tl.load(SEG + start + tl.minimum(l, T - start - 1))
        keep = keep & (own[:, None] == own[None, :])
    return tl.where(keep, decay, 0.0)


@triton.jit
def _tile(M, time_stride, l, column, inside, width: tl.constexpr):
    """(L, columns) of the rows that M points at, the chunk's first one on; 0 outside."""
    return tl.load(M + l[:, None] * time_stride + column[None, :], mask=inside & (column[None, :] < width), other=0.0)


@triton.jit
def chain(
    V, K, DT, BIAS, A, SEG, START, STATES, END, T, H, R, n_chunks, v_b, v_t, v_h, k_b, k_t, k_g, dt_b, dt_t,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, L: tl.constexpr, HAS_SEG: tl.constexpr,
    HAS_START: tl.constexpr, BACKWARD: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """States from chunk to chunk: state = whole * state + sum_t weight_t v_t k_t^T, of part of a head's P.

    Forwards v is x, k is B, the weight is step * decay to the chunk's end, and STATES (B, H, chunks, P, N) gets the
    state at each chunk's start. Backwards v is dy, k is C, the weight is the decay from the chunk's start, and STATES
    gets the gradient of the state at each chunk's end. START and END are (B, H, P, N) fp32.
    """
    h, part, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    p, n, l = part * BP + tl.arange(0, BP), tl.arange(0, BN), tl.arange(0, L)
    whole_state = (n[:, None] < N) & (p[None, :] < P)
    place = p[None, :] * N + n[:, None]
    state = tl.zeros((BN, BP), tl.float32)
    if HAS_START:
        state = tl.load(START + (b * H + h) * P * N + place, mask=whole_state, other=0.0).to(tl.float32)
    V, K, DT, SEG = V + b * v_b + h * v_h, K + b * k_b + h // R * k_g, DT + b * dt_b, SEG + b * T
    STATES += (b * H + h) * n_chunks * P * N
    for i in range(0, n_chunks):
        c = i
        if BACKWARD:
            c = n_chunks - 1 - i
        tl.store(STATES + c.to(tl.int64) * P * N + place, state.to(STATES.dtype.element_ty), whole_state)  # pyright: ignore[reportAttributeAccessIssue]
        start = (c * L).to(tl.int64)  # pyright: ignore[reportAttributeAccessIssue]
        _, step, _, from_start, to_end, whole = _steps(DT, BIAS, A, SEG, h, start, T, dt_t, L, HAS_SEG)
        inside = (l < T - start)[:, None]
        v = _tile(V + start * v_t, v_t, l, p, inside, P)
        k = _tile(K + start * k_t, k_t, l, n, inside, N)
        weight = from_start if BACKWARD else to_end * step
        weighted = (v.to(tl.float32) * weight[:, None]).to(v.dtype)
        state = state * whole + tl.dot(tl.trans(k.to(v.dtype)), weighted, input_precision=DOT)
    tl.store(END + (b * H + h) * P * N + place, state, mask=whole_state)


@triton.jit
def outputs(
    X, DT, A, B, C, D, BIAS, SEG, STATES, Y, T, H, R, n_chunks, x_b, x_t, x_h, dt_b, dt_t, b_b, b_t, b_g, c_b, c_t, c_g,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, L: tl.constexpr, HAS_SEG: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """y of one chunk of one head: what its own tokens give, and the state at its start."""
    chunk, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    p, n, l = tl.arange(0, BP), tl.arange(0, BN), tl.arange(0, L)
    start = (chunk * L).to(tl.int64)
    inside = (l < T - start)[:, None]
    x = _tile(X + b * x_b + start * x_t + h * x_h, x_t, l, p, inside, P)
    k = _tile(B + b * b_b + start * b_t + h // R * b_g, b_t, l, n, inside, N).to(x.dtype)
    q = _tile(C + b * c_b + start * c_t + h // R * c_g, c_t, l, n, inside, N).to(x.dtype)
    STATES += ((b * H + h) * n_chunks + chunk) * P * N
    in_state = (n[:, None] < N) & (p[None, :] < P)
    state = tl.load(STATES + p[None, :] * N + n[:, None], mask=in_state, other=0.0).to(x.dtype)
    SEG += b * T
    _, step, total, from_start, _, _ = _steps(DT + b * dt_b, BIAS, A, SEG, h, start, T, dt_t, L, HAS_SEG)
    products = tl.dot(q, tl.trans(k), input_precision=DOT) * _within(total, SEG, start, T, L, HAS_SEG) * step[None, :]
    y = tl.dot(q, state, input_precision=DOT) * from_start[:, None]
    y += tl.dot(products.to(x.dtype), x, input_precision=DOT) + x.to(tl.float32) * tl.load(D + h).to(tl.float32)
    Y += ((b * T + start) * H + h) * P
    tl.store(Y + l[:, None] * (H * P) + p[None, :], y.to(Y.dtype.element_ty), mask=inside & (p[None, :] < P))


@triton.jit
def group_gradients(
    X, DT, A, B, C, BIAS, SEG, STATES, DSTATES, DY, DB, DC, DLOG, T, H, R, n_chunks,
    x_b, x_t, x_h, dt_b, dt_t, b_b, b_t, b_g, c_b, c_t, c_g, dy_b, dy_t, dy_h,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, PART: tl.constexpr, L: tl.constexpr,
    HAS_SEG: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Of one chunk and head: its share of the gradients of B and C, DB and DC (B, T, H, N) fp32, to be summed over a
    group's heads; and DLOG (B, T, H) fp32, the gradients of the log decays through the state at the chunk's start.

    N is walked in parts: whole, its tensors do not fit the registers.
    """
    chunk, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    p, l = tl.arange(0, BP), tl.arange(0, L)
    start = (chunk * L).to(tl.int64)
    inside, in_p = (l < T - start)[:, None], p[None, :] < P
    x = _tile(X + b * x_b + start * x_t + h * x_h, x_t, l, p, inside, P)
    dy = _tile(DY + b * dy_b + start * dy_t + h * dy_h, dy_t, l, p, inside, P).to(x.dtype)
    SEG += b * T
    _, step, total, from_start, to_end, whole = _steps(DT + b * dt_b, BIAS, A, SEG, h, start, T, dt_t, L, HAS_SEG)
    stepped = (x.to(tl.float32) * step[:, None]).to(x.dtype)
    weighted = (x.to(tl.float32) * (step * to_end)[:, None]).to(x.dtype)
    dproducts = tl.dot(dy, tl.trans(stepped), input_precision=DOT) * _within(total, SEG, start, T, L, HAS_SEG)
    inner = dproducts.to(x.dtype)
    B, C = B + b * b_b + start * b_t + h // R * b_g, C + b * c_b + start * c_t + h // R * c_g
    place, first_row = ((b * H + h) * n_chunks + chunk) * P * N, (b * T + start) * H + h
    from_start_grad, dlog_whole = tl.zeros((L,), tl.float32), tl.zeros((PART,), tl.float32)
    for first in range(0, BN, PART):
        n = first + tl.arange(0, PART)
        in_n, in_state = inside & (n[None, :] < N), in_p & (n[:, None] < N)
        row, in_place = l[:, None] * (H * N) + n[None, :], p[None, :] * N + n[:, None]
        state = tl.load(STATES + place + in_place, mask=in_state, other=0.0).to(x.dtype)
        dstate = tl.load(DSTATES + place + in_place, mask=in_state, other=0.0).to(x.dtype)
        dlog_whole += tl.sum(dstate.to(tl.float32) * state.to(tl.float32), 1)
        q = _tile(C, c_t, l, n, inside, N).to(x.dtype)
        dk = tl.dot(weighted, tl.trans(dstate), input_precision=DOT)
        dk += tl.dot(tl.trans(inner), q, input_precision=DOT)
        tl.store(DB + first_row * N + row, dk, mask=in_n)
        dq = tl.dot(dy, tl.trans(state), input_precision=DOT) * from_start[:, None]
        from_start_grad += tl.sum(dq * q.to(tl.float32), 1)
        k = _tile(B, b_t, l, n, inside, N).to(x.dtype)
        tl.store(DC + first_row * N + row, dq + tl.dot(inner, k, input_precision=DOT), mask=in_n)
    dlog = tl.cumsum(from_start_grad, 0, reverse=True) + whole * tl.sum(dlog_whole, 0)
    tl.store(DLOG + first_row + l * H, dlog, mask=l < T - start)


@triton.jit
def head_gradients(
    X, DT, A, B, C, D, BIAS, SEG, DSTATES, DY, DLOG, DX, DDT, DA, DD, T, H, R, n_chunks,
    x_b, x_t, x_h, dt_b, dt_t, b_b, b_t, b_g, c_b, c_t, c_g, dy_b, dy_t, dy_h,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, PART: tl.constexpr, L: tl.constexpr,
    HAS_SEG: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Of one chunk and head: DX (B, T, H, P), DDT (B, T, H) fp32, and DA and DD (B, H, chunks) fp32, to be summed over
    rows and chunks. DLOG is what `group_gradients` gave."""
    chunk, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    p, l = tl.arange(0, BP), tl.arange(0, L)
    start = (chunk * L).to(tl.int64)
    inside, in_p = (l < T - start)[:, None], p[None, :] < P
    SEG += b * T
    DT += b * dt_b
    decays = _steps(DT, BIAS, A, SEG, h, start, T, dt_t, L, HAS_SEG)
    z, step, total, _, to_end, _ = decays  # pyright: ignore[reportGeneralTypeIssues]
    B, C = B + b * b_b + start * b_t + h // R * b_g, C + b * c_b + start * c_t + h // R * c_g
    one, first_row = (b * H + h) * n_chunks + chunk, (b * T + start) * H + h
    products, dx = tl.zeros((L, L), tl.float32), tl.zeros((L, BP), tl.float32)
    for first in range(0, BN, PART):
        n = first + tl.arange(0, PART)
        k, q = _tile(B, b_t, l, n, inside, N).to(DX.dtype.element_ty), _tile(C, c_t, l, n, inside, N)
        in_place = one * P * N + p[None, :] * N + n[:, None]
        dstate = tl.load(DSTATES + in_place, mask=in_p & (n[:, None] < N), other=0.0)
        products += tl.dot(q.to(DX.dtype.element_ty), tl.trans(k), input_precision=DOT)
        dx += tl.dot(k, dstate, input_precision=DOT)
    products *= _within(total, SEG, start, T, L, HAS_SEG)
    dx *= to_end[:, None]

    x = _tile(X + b * x_b + start * x_t + h * x_h, x_t, l, p, inside, P)
    dy = _tile(DY + b * dy_b + start * dy_t + h * dy_h, dy_t, l, p, inside, P).to(x.dtype)
    stepped = x.to(tl.float32) * step[:, None]
    through_end = tl.sum(stepped * dx, 1)
    dlog = tl.load(DLOG + first_row + l * H, mask=l < T - start, other=0.0)
    dlog += tl.cumsum(through_end, 0) - through_end
    # log decay of token m acts on all pairs j < m <= i; summed as such, since differences of whole sums lose digits
    pairs = tl.dot(dy, tl.trans(stepped.to(x.dtype)), input_precision=DOT) * products
    pairs = tl.where(l[:, None] > l[None, :], pairs, 0.0)
    before = tl.dot(pairs, tl.where(l[:, None] < l[None, :], 1.0, 0.0), input_precision=DOT)
    dlog += tl.sum(tl.where(l[:, None] >= l[None, :], before, 0.0), 0)
    dx += tl.dot(tl.trans(products.to(x.dtype)), dy, input_precision=DOT)
    dstep = tl.sum(dx * x.to(tl.float32), 1)
    dx = dx * step[:, None] + dy.to(tl.float32) * tl.load(D + h).to(tl.float32)
    DX += first_row * P
    tl.store(DX + l[:, None] * (H * P) + p[None, :], dx.to(DX.dtype.element_ty), mask=inside & in_p)

    ddt = (dstep + dlog * tl.load(A + h).to(tl.float32)) * tl.sigmoid(z)
    tl.store(DDT + first_row + l * H, ddt, mask=l < T - start)
    tl.store(DA + one, tl.sum(dlog * step, 0))
    tl.store(DD + one, tl.sum(tl.sum(dy.to(tl.float32) * x.to(tl.float32), 1), 0))
