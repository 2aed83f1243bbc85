"""The kernels, in Triton. Compiled ahead of time (`compile.py`) or as they are first used (`launchers.TritonLauncher`).

Keys and values of a layer are `[kv_heads, slots, head_dim]`; block b is the slots `b * BLOCK ... (b + 1) * BLOCK - 1`.
Every sum is in float32. What a token gets depends on its own keys alone: parts of a long sequence begin at multiples of
`part` positions in every step.
"""

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def place(
    q_out,
    keys,
    values,
    qkv,
    q_weight,
    k_weight,
    cos,
    sin,
    slots,
    heads,
    kv_heads,
    capacity,
    eps,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    NORMED: tl.constexpr,
):
    """One head of one token: norm and rotary embedding of q and k; k and v go to the token's slot, q to `q_out`.

    `qkv [tokens, heads + 2 * kv_heads, HEAD_DIM]`; `cos`, `sin [tokens, HEAD_DIM]`, the first half of sin negated. A
    token whose slot is negative is stored nowhere. Grid: tokens, heads + 2 * kv_heads.
    """
    token, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, WIDTH)
    inside = d < HEAD_DIM
    source = qkv + (token.to(tl.int64) * (heads + 2 * kv_heads) + head) * HEAD_DIM
    raw = tl.load(source + d, mask=inside, other=0.0)
    slot = tl.load(slots + token)
    keeps = inside & (tl.zeros((WIDTH,), tl.int32) + slot >= 0)
    if head >= heads + kv_heads:
        at = ((head - heads - kv_heads).to(tl.int64) * capacity + slot) * HEAD_DIM
        tl.store(values + at + d, raw, mask=keeps)
    else:
        other = tl.where(d < HEAD_DIM // 2, d + HEAD_DIM // 2, d - HEAD_DIM // 2)
        x = raw.to(tl.float32)
        turned = tl.load(source + other, mask=inside, other=0.0).to(tl.float32)
        if NORMED:
            scale = tl.rsqrt(tl.sum(x * x, 0) / HEAD_DIM + eps)
            weight = q_weight
            if head >= heads:
                weight = k_weight
            x = x * scale * tl.load(weight + d, mask=inside, other=0.0)
            turned = turned * scale * tl.load(weight + other, mask=inside, other=0.0)
        angle = token.to(tl.int64) * HEAD_DIM + d
        y = x * tl.load(cos + angle, mask=inside, other=0.0) + turned * tl.load(sin + angle, mask=inside, other=0.0)
        if head < heads:
            at = (token.to(tl.int64) * heads + head) * HEAD_DIM
            tl.store(q_out + at + d, y.to(q_out.dtype.element_ty), mask=inside)
        else:
            at = ((head - heads).to(tl.int64) * capacity + slot) * HEAD_DIM
            tl.store(keys + at + d, y.to(keys.dtype.element_ty), mask=keeps)


@triton.jit
def attend(
    out,
    q,
    keys,
    values,
    positions,
    seen,
    tiles,
    blocks,
    partial,
    arrived,
    scale,
    window,
    part,
    heads,
    group,
    capacity,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention of one tile of a sequence's tokens, by the heads that share a key head (flash attention, Dao 2022).

    `tiles [n, 4]`: the first token's row, how many there are, where the sequence's blocks begin in `blocks`, and the
    place of the first of them. `seen[row]`: one past the last position that a token sees, which is behind itself where
    it is part of an image. `window` 0: all before. A tile of one token is divided in parts of `part` positions, whose
    results meet in `partial`; the one that arrives last adds them up. Grid: tiles, kv_heads, parts.
    """
    tile, head, number = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.load(tiles + tile * 4)
    count = tl.load(tiles + tile * 4 + 1)
    begin = tl.load(tiles + tile * 4 + 2)
    first = tl.load(tiles + tile * 4 + 3)

    m = tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    token = m // group
    valid = token < count
    inside = d < HEAD_DIM
    flat = row + token
    position = tl.load(positions + flat, mask=valid, other=0)
    upper = tl.load(seen + flat, mask=valid, other=0)
    low = 0
    if window > 0:
        low = tl.maximum(tl.load(positions + row, mask=count > 0, other=0) + 1 - window, 0)
    high = tl.max(upper, 0)
    parts = 1
    start = low // BLOCK * BLOCK
    end = high
    if count == 1:
        begins = low // part
        parts = (high + part - 1) // part - begins
        start = tl.maximum(start, (begins + number) * part)
        end = tl.minimum(high, (begins + number + 1) * part)

    if (number < parts) & (count > 0):
        lane = head * group + m % group
        q_at = (flat.to(tl.int64) * heads + lane) * HEAD_DIM
        query = tl.load(q + q_at[:, None] + d[None, :], mask=valid[:, None] & inside[None, :], other=0.0)
        best = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        sums = tl.zeros((ROWS, WIDTH), tl.float32)
        base = head.to(tl.int64) * capacity
        for n in range(start, end, KEYS):
            key = n + tl.arange(0, KEYS)
            there = key < end
            block = tl.load(blocks + begin + key // BLOCK - first, mask=there, other=0)
            at = (base + block * BLOCK + key % BLOCK) * HEAD_DIM
            k = tl.load(keys + at[None, :] + d[:, None], mask=there[None, :] & inside[:, None], other=0.0)
            score = tl.dot(query, k, input_precision=PRECISION) * (scale * _LOG2E)
            sees = there[None, :] & (key[None, :] < upper[:, None])
            if window > 0:
                sees = sees & (key[None, :] > position[:, None] - window)
            score = tl.where(sees, score, float("-inf"))
            higher = tl.maximum(best, tl.max(score, 1))
            level = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp2(score - level[:, None])
            fade = tl.exp2(best - level)
            total = total * fade + tl.sum(weight, 1)
            v = tl.load(values + at[:, None] + d[None, :], mask=there[:, None] & inside[None, :], other=0.0)
            sums = sums * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
            best = higher

        # Rows of no token have seen nothing.
        mass = tl.where(total > 0, total, 1.0)
        out_at = (flat.to(tl.int64) * heads + lane) * HEAD_DIM
        writes = valid[:, None] & inside[None, :]
        if parts == 1:
            tl.store(out + out_at[:, None] + d[None, :], (sums / mass[:, None]).to(out.dtype.element_ty), mask=writes)
        else:
            mine = tile * tl.num_programs(1) + head
            most = tl.num_programs(2)
            held = ((mine * most + number) * group + m).to(tl.int64) * (WIDTH + 2)
            tl.store(partial + held[:, None] + d[None, :], sums, mask=valid[:, None])
            tl.store(partial + held + WIDTH, best, mask=valid)
            tl.store(partial + held + WIDTH + 1, total, mask=valid)
            # Every thread's stores come before the count, and the count before the last one's loads.
            tl.debug_barrier()
            if tl.atomic_add(arrived + mine, 1, sem="acq_rel") == parts - 1:
                best = tl.full((ROWS,), float("-inf"), tl.float32)
                total = tl.zeros((ROWS,), tl.float32)
                sums = tl.zeros((ROWS, WIDTH), tl.float32)
                for other in range(parts):
                    held = ((mine * most + other) * group + m).to(tl.int64) * (WIDTH + 2)
                    top = tl.load(partial + held + WIDTH, mask=valid, other=0.0, cache_modifier=".cg")
                    weight = tl.load(partial + held + WIDTH + 1, mask=valid, other=0.0, cache_modifier=".cg")
                    some = tl.load(
                        partial + held[:, None] + d[None, :], mask=valid[:, None], other=0.0, cache_modifier=".cg"
                    )
                    higher = tl.maximum(best, top)
                    level = tl.where(higher == float("-inf"), 0.0, higher)
                    old, new = tl.exp2(best - level), tl.exp2(top - level)
                    total = total * old + weight * new
                    sums = sums * old[:, None] + some * new[:, None]
                    best = higher
                mass = tl.where(total > 0, total, 1.0)
                tl.store(
                    out + out_at[:, None] + d[None, :], (sums / mass[:, None]).to(out.dtype.element_ty), mask=writes
                )
                tl.store(arrived + mine, 0)


@triton.jit
def add_norm(
    y,
    x,
    out,
    after,
    before,
    hidden,
    eps,
    WIDTH: tl.constexpr,
    ADDS: tl.constexpr,
    SANDWICH: tl.constexpr,
):
    """One row: `x += out`, with Gemma's norm of `out` where SANDWICH; then `y = norm(x)`. x is float32. Grid: rows."""
    row = tl.program_id(0).to(tl.int64) * hidden
    d = tl.arange(0, WIDTH)
    inside = d < hidden
    residual = tl.load(x + row + d, mask=inside, other=0.0)
    if ADDS:
        added = tl.load(out + row + d, mask=inside, other=0.0).to(tl.float32)
        if SANDWICH:
            scale = tl.rsqrt(tl.sum(added * added, 0) / hidden + eps)
            added = added * scale * tl.load(after + d, mask=inside, other=0.0)
        residual += added
        tl.store(x + row + d, residual, mask=inside)
    scale = tl.rsqrt(tl.sum(residual * residual, 0) / hidden + eps)
    normed = residual * scale * tl.load(before + d, mask=inside, other=0.0)
    tl.store(y + row + d, normed.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gated(y, gate_up, inner, ACTIVATION: tl.constexpr, WIDTH: tl.constexpr):
    """`activation(gate) * up` of `[rows, 2 * inner]`, gate before up. Grid: rows, pieces of WIDTH."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = d < inner
    x = tl.load(gate_up + row * 2 * inner + d, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inner + inner + d, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu_tanh":
        # x * (1 + tanh(t)) / 2 is x * sigmoid(2 t).
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        x = tl.maximum(x, 0.0)
    tl.store(y + row * inner + d, (x * up).to(y.dtype.element_ty), mask=inside)


@triton.jit
def multiply8(
    y,
    x,
    weight,
    scales,
    bias,
    rows,
    outs,
    inner,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    INNER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`y = (x @ weight.T) * scales (+ bias)`: x `[rows, inner]`, weight int8 `[outs, inner]`, one scale an output.

    A weight of 8 bits is a bfloat16 exactly. Grid: tiles of OUTS, tiles of ROWS.
    """
    o = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    has_o, has_m = o < outs, m < rows
    sums = tl.zeros((ROWS, OUTS), tl.float32)
    x_row = x + m.to(tl.int64)[:, None] * inner
    w_row = weight + o.to(tl.int64)[None, :] * inner
    for start in range(0, inner, INNER):
        i = start + tl.arange(0, INNER)
        has_i = i < inner
        a = tl.load(x_row + i[None, :], mask=has_m[:, None] & has_i[None, :], other=0.0)
        w = tl.load(w_row + i[:, None], mask=has_i[:, None] & has_o[None, :], other=0)
        sums += tl.dot(a, w.to(a.dtype), input_precision=PRECISION)
    result = sums * tl.load(scales + o, mask=has_o, other=0.0)[None, :]
    if BIASED:
        result += tl.load(bias + o, mask=has_o, other=0.0).to(tl.float32)[None, :]
    at = m.to(tl.int64)[:, None] * outs + o[None, :]
    tl.store(y + at, result.to(y.dtype.element_ty), mask=has_m[:, None] & has_o[None, :])
