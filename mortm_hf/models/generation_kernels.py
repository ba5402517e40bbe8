"""Compiled code: one decoding step of the model, for some rows of a batch.

Design decisions
- One signature for all models: sizes, options and places are numbers in arrays, so a machine compiles once.
- At one token a row a step is reading the weights. Matrices lie [out, in] in one array, read from front to back (one
  stream is faster than four), each weight once for all rows of the batch; four rows are summed at a time.
- Matrices may be bfloat16 (as uint16: the same numbers at half the bytes where the weights are exact in it) or int8
  with a scale for each output. Sums are fp32 always.
- Only the chosen experts are read, each once for all rows that chose it.
- Scores of one query are a short row, so the softmax of the whole row stays in the nearest cache: no blocks of keys.
- Arguments are arrays of at most five dimensions, none in a tuple: others take numba 0.1 ms a call to recognise.
- This file imports nothing of the package: `generation_compiled` loads it from a folder where compiled code can stay.

Knows: arrays. Must not know: tensors, the model's classes, tokens' meaning.
"""

from __future__ import annotations

import math

import numpy as np


try:
    from numba import njit, types
    from numba.extending import overload
except ImportError as error:  # reported by `generation_compiled.missing`
    raise ImportError("numba is not installed") from error


# Places in `sizes`; a matrix is three numbers: its place, and those of bias and scales in `vectors` (-1: none)
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, NORM, ACT, ROPE, GATED, INNER, EMBED, LAST_NORM = range(12)
EXPERTS, CHOSEN, EXPERT_INNER, SHARED_INNER, SIGMOID, GROUPS, KEPT_GROUPS, NORMALISED = range(12, 20)
HEAD, N_SIZES = 20, 23
# Places in `reals`
NORM_EPS, WEIGHT_EPS, FACTOR, SCALE, N_REALS = range(5)
# Columns of `layers`: norms and the router's correction in `vectors`, then matrices
NORM_1, NORM_2, SPARSE, CORRECTION = range(4)
QKV, OUT, ROUTER, UP, DOWN, SHARED_UP, SHARED_DOWN, N_LAYER = range(4, 28, 3)
# Activations and norms, in the order of `ACTIVATIONS` and `NORMS` in `generation_cpu`
_SILU, _GELU, _GELU_TANH, _QUICK_GELU, _RELU, _RELU2, _TANH, _SIGMOID, _MISH, _LINEAR = range(10)
_F = np.float32

fast = njit(nogil=True, fastmath=True, error_model="numpy")
# no reassociation: the two-part reduction of the exponential depends on the order of its operations
exact = njit(nogil=True, fastmath={"contract"}, error_model="numpy")


def _wide(value):
    """A weight as fp32."""


@overload(_wide)
def _wide_of(value):
    if value == types.float32:
        return lambda value: value
    if value == types.int8:
        return lambda value: np.float32(value)
    return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)


@exact
def _exp(x):
    """e^x within 1e-7 of its value (fp32), in operations that fill vector registers."""
    x = min(max(x, _F(-87.0)), _F(88.0))
    n = np.floor(x * _F(1.44269504) + _F(0.5))
    r = x - n * _F(0.693359375) - n * _F(-2.12194440e-4)
    p = _F(1.9875691500e-4) * r + _F(1.3981999507e-3)
    p = ((p * r + _F(8.3334519073e-3)) * r + _F(4.1665795894e-2)) * r + _F(1.6666665459e-1)
    p = (p * r + _F(5.0000001201e-1)) * r * r + r + _F(1.0)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@fast
def _add(x, factor, y):
    """x += factor * y."""
    for i in range(len(y)):
        x[i] += factor * y[i]


@fast
def _products(matrix, x, x_rows, y, y_rows, count, start):
    """y[y_rows[i], start + o] = matrix[o] @ x[x_rows[i], :ins], for i < count and all o."""
    outs, ins = matrix.shape
    for o in range(outs):
        w, at, i = matrix[o], start + o, 0
        while i + 4 <= count:
            p, q, r, s = x[x_rows[i]], x[x_rows[i + 1]], x[x_rows[i + 2]], x[x_rows[i + 3]]
            a = b = c = d = _F(0.0)
            for j in range(ins):
                v = _wide(w[j])
                a += v * p[j]
                b += v * q[j]
                c += v * r[j]
                d += v * s[j]
            y[y_rows[i], at], y[y_rows[i + 1], at], y[y_rows[i + 2], at], y[y_rows[i + 3], at] = a, b, c, d
            i += 4
        while i < count:
            p, a = x[x_rows[i]], _F(0.0)
            for j in range(ins):
                a += _wide(w[j]) * p[j]
            y[y_rows[i], at] = a
            i += 1


@fast
def _linear(weights, where, e, outs, ins, vectors, x, x_rows, y, y_rows, count):
    """y[y_rows[i], :outs] = matrix @ x[x_rows[i], :ins] + bias, for i < count.

    The matrix is the e-th [outs, ins] of those that begin at where[0]; bias and scales likewise.
    """
    place, bias, scale = where[0] + e * outs * ins, where[1], where[2]
    matrix = weights[place : place + outs * ins].reshape((outs, ins))
    _products(matrix, x, x_rows, y, y_rows, count, count - count)
    if scale >= 0:
        factors = vectors[scale + e * outs : scale + (e + 1) * outs]
        for j in range(count):
            row = y[y_rows[j]]
            for o in range(outs):
                row[o] *= factors[o]
    if bias >= 0:
        shift = vectors[bias + e * outs : bias + (e + 1) * outs]
        for j in range(count):
            _add(y[y_rows[j]], _F(1.0), shift)


@fast
def _norm(kind, eps, vectors, place, x, y):
    """y = norm(x), both [hidden]; parameters weight, bias, alpha one after the other in `vectors`."""
    size = len(x)
    weight = vectors[place : place + size]
    if kind == 0:
        total = _F(0.0)
        for i in range(size):
            total += x[i] * x[i]
        factor = _F(1.0) / np.sqrt(total / _F(size) + eps)
        for i in range(size):
            y[i] = x[i] * factor * weight[i]
        return
    bias = vectors[place + size : place + 2 * size]
    if kind == 1:
        total = _F(0.0)
        for i in range(size):
            total += x[i]
        mean, total = total / _F(size), _F(0.0)
        for i in range(size):
            total += (x[i] - mean) * (x[i] - mean)
        factor = _F(1.0) / np.sqrt(total / _F(size) + eps)
        for i in range(size):
            y[i] = (x[i] - mean) * factor * weight[i] + bias[i]
        return
    alpha = vectors[place + 2 * size]
    for i in range(size):
        y[i] = _F(math.tanh(alpha * x[i])) * weight[i] + bias[i]


@fast
def _activate(kind, gated, width, y):
    """In place: y[:width] = act(y[:width]) (* y[width : 2 * width] where gated)."""
    a = y[:width]
    if kind == _SILU:
        for i in range(width):
            a[i] = a[i] / (_F(1.0) + _exp(-a[i]))
    elif kind == _GELU:
        for i in range(width):
            a[i] = a[i] * _F(0.5) * (_F(1.0) + _F(math.erf(a[i] * _F(0.7071067811865476))))
    elif kind == _GELU_TANH:
        for i in range(width):
            inner = _F(0.7978845608028654) * (a[i] + _F(0.044715) * a[i] * a[i] * a[i])
            a[i] = a[i] * _F(0.5) * (_F(1.0) + _F(math.tanh(inner)))
    elif kind == _QUICK_GELU:
        for i in range(width):
            a[i] = a[i] / (_F(1.0) + _exp(_F(-1.702) * a[i]))
    elif kind == _RELU:
        for i in range(width):
            a[i] = max(a[i], _F(0.0))
    elif kind == _RELU2:
        for i in range(width):
            a[i] = max(a[i], _F(0.0)) * max(a[i], _F(0.0))
    elif kind == _TANH:
        for i in range(width):
            a[i] = _F(math.tanh(a[i]))
    elif kind == _SIGMOID:
        for i in range(width):
            a[i] = _F(1.0) / (_F(1.0) + _exp(-a[i]))
    elif kind == _MISH:
        for i in range(width):
            a[i] = a[i] * _F(math.tanh(math.log1p(math.exp(a[i])))) if a[i] < _F(20.0) else a[i]
    if gated:
        b = y[width : 2 * width]
        for i in range(width):
            a[i] *= b[i]


@fast
def _softmax(scores, slope):
    """In place: exp(score - slope * distance to the last key - largest); returns the sum."""
    n = len(scores)
    if slope != _F(0.0):
        for j in range(n):
            scores[j] -= slope * _F(n - 1 - j)
    top, total = scores[0], _F(0.0)
    for j in range(n):
        top = max(top, scores[j])
    for j in range(n):
        scores[j] = _exp(scores[j] - top)
    for j in range(n):
        total += scores[j]
    return total


@fast
def _collect(scores, start, values, out, rows):
    """out[r] += scores[r, start : start + n] @ values, for values [n, head_dim], eight at a time."""
    n, dim = values.shape
    whole = n - n % 8
    for j in range(0, whole, 8):
        v0, v1, v2, v3 = values[j], values[j + 1], values[j + 2], values[j + 3]
        v4, v5, v6, v7 = values[j + 4], values[j + 5], values[j + 6], values[j + 7]
        for r in rows:
            a, y = scores[r, start + j : start + j + 8], out[r]
            a0, a1, a2, a3, a4, a5, a6, a7 = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
            for c in range(dim):
                y[c] += (a0 * v0[c] + a1 * v1[c] + a2 * v2[c] + a3 * v3[c]) + (
                    a4 * v4[c] + a5 * v5[c] + a6 * v6[c] + a7 * v7[c]
                )
    for j in range(whole, n):
        for r in rows:
            _add(out[r], scores[r, start + j], values[j])


@fast
def _attend(query, keys, values, own_keys, own_values, kept, made, slope, scores, out, rows):
    """out[r] = attention of query[r] over the keys of a prompt and then the row's own ones, for rows of one prompt.

    query, out: [batch, head_dim]; keys, values: [n, head_dim]; own_keys, own_values: [batch, key heads, room,
    head_dim], of which the head `kept` and `made` keys count; scores: [batch, room] for use.
    """
    n, zero = len(keys), made - made
    _products(keys, query, rows, scores, rows, len(rows), zero)
    for i in range(len(rows)):
        r = rows[i]
        _products(own_keys[r, kept, :made], query, rows[i:], scores, rows[i:], zero + 1, n)
        total = _F(1.0) / _softmax(scores[r, : n + made], slope)
        for j in range(n + made):
            scores[r, j] *= total
        out[r] = _F(0.0)
        _collect(scores, n, own_values[r, kept, :made], out, rows[i : i + 1])
    _collect(scores, zero, values, out, rows)


@fast
def _rotate(vector, cos, sin):
    """In place: the dimension pairs (c, c + half) rotated by the angles of one position."""
    half = len(cos)
    first, second = vector[:half], vector[half : 2 * half]
    for c in range(half):
        a, b = first[c], second[c]
        first[c] = a * cos[c] - b * sin[c]
        second[c] = b * cos[c] + a * sin[c]


@exact
def _route(sizes, reals, vectors, correction, logits, chosen, shares):
    """Router logits [experts] -> the chosen experts and their shares [k], as `MortmTopKRouter`; logits are used up."""
    experts, k = sizes[EXPERTS], sizes[CHOSEN]
    scores = logits[:experts]
    if sizes[SIGMOID]:
        for e in range(experts):
            scores[e] = _F(1.0) / (_F(1.0) + _F(math.exp(-scores[e])))
    else:
        top, total = scores.max(), _F(0.0)
        for e in range(experts):
            scores[e] = _F(math.exp(scores[e] - top))
            total += scores[e]
        for e in range(experts):
            scores[e] /= total
    choice = scores.copy()
    if correction >= 0:
        choice += vectors[correction : correction + experts]
    groups = sizes[GROUPS]
    if groups > 1:
        each = experts // groups
        best = np.empty(groups, dtype=np.float32)
        for g in range(groups):
            best[g] = choice[g * each : (g + 1) * each].max()
        for _ in range(groups - sizes[KEPT_GROUPS]):
            g = best.argmin()
            best[g] = _F(np.inf)
            choice[g * each : (g + 1) * each] = _F(-np.inf)
    total = _F(0.0)
    for i in range(k):
        e = choice.argmax()
        chosen[i], shares[i], choice[e] = e, scores[e], _F(-np.inf)
        total += scores[e]
    for i in range(k):
        if sizes[NORMALISED]:
            shares[i] /= total + reals[WEIGHT_EPS]
        shares[i] *= reals[FACTOR]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def step(
    weights, tables, vectors, sizes, reals, layers, slopes, cos, sin, prompt, source, first, cache, made, rows, tokens,
    x, h, qkv, query, attended, joined, scores, inner, out, chosen, shares, logits
):  # fmt: skip
    """One more token for the given rows of a batch.

    Args:
        weights: [n] fp32, bfloat16 as uint16, or int8: the matrices of the layers.
        tables: [n] fp32, or bfloat16 as uint16: embedding, output layer, routers.
        vectors: [n] fp32: norms, biases, scales.
        sizes: [N_SIZES] int64, see the places above.
        reals: [N_REALS] fp32.
        layers: [layers, N_LAYER] int64.
        slopes: [heads] of ALiBi, zeros with rotary positions.
        cos: [room, head_dim / 2] of every position.
        sin: [room, head_dim / 2] the same.
        prompt: keys of the different prompts, then values, [2 layers, prompts, key heads, length, head_dim].
        source: [batch] the prompt of each row.
        first: [batch] the column of its first token.
        cache: keys of the answers, then values, [2 layers, batch, key heads, room, head_dim].
        made: how many tokens of the answers are in `cache`.
        rows: [n] the rows to work on.
        tokens: [batch] their new tokens.
        x: [batch, hidden] buffer: the residual stream.
        h: [batch, hidden] buffer: what a part reads or adds.
        qkv: [batch, (heads + 2 key heads) * head_dim] buffer.
        query: [heads, batch, head_dim] buffer, scaled.
        attended: [heads, batch, head_dim] buffer: the values that each head collects.
        joined: [batch, heads * head_dim] buffer: the same, side by side.
        scores: [batch, room] buffer, of attention and of the router.
        inner: [batch * chosen experts, width] buffer of the feed-forward part.
        out: [batch * chosen experts, hidden] buffer: its outputs.
        chosen: [batch, chosen experts] buffer: their numbers.
        shares: [batch, chosen experts] buffer: their weights.
        logits: [batch, vocab] of the next token; other rows stay as they are.
    """
    hidden, heads, kv, dim = sizes[HIDDEN], sizes[HEADS], sizes[KV_HEADS], sizes[HEAD_DIM]
    share, act, kind, eps = heads // kv, sizes[ACT], sizes[NORM], reals[NORM_EPS]
    count, k, experts, width = len(rows), sizes[CHOSEN], sizes[EXPERTS], sizes[EXPERT_INNER]
    depth, prompts, length = len(layers), prompt.shape[1], prompt.shape[3]
    members = np.empty(count, dtype=np.int64)
    zero = count - count  # a function is compiled again for every literal that it is given
    bounds, n = np.zeros(prompts + 1, dtype=np.int64), zero  # rows of prompt e: members[bounds[e] : bounds[e + 1]]
    for e in range(prompts):
        for r in rows:
            if source[r] == e:
                members[n] = r
                n += 1
        bounds[e + 1] = n
    one_each = rows * k  # of the rows that each row has in `inner` and `out`
    used_rows, used_slots = np.empty(count * k, dtype=np.int64), np.empty(count * k, dtype=np.int64)
    for r in rows:
        token = tables[sizes[EMBED] + tokens[r] * hidden : sizes[EMBED] + (tokens[r] + 1) * hidden]
        for i in range(hidden):
            x[r, i] = _wide(token[i])
    for l in range(depth):
        p = layers[l]
        for r in rows:
            _norm(kind, eps, vectors, p[NORM_1], x[r], h[r])
        outs = (heads + 2 * kv) * dim
        _linear(weights, p[QKV:], zero, outs, hidden, vectors, h, rows, qkv, rows, count)
        for r in rows:
            new, place = qkv[r], length - first[r] + made
            if sizes[ROPE]:
                for g in range(heads + kv):
                    _rotate(new[g * dim : (g + 1) * dim], cos[place], sin[place])
            for g in range(kv):
                cache[l, r, g, made] = new[(heads + g) * dim : (heads + g + 1) * dim]
                cache[depth + l, r, g, made] = new[(heads + kv + g) * dim : (heads + kv + g + 1) * dim]
            for i in range(heads * dim):
                new[i] *= reals[SCALE]
            for g in range(heads):
                query[g, r] = new[g * dim : (g + 1) * dim]
        for g in range(heads):
            kept = g // share
            for n in range(len(bounds) - 1):
                some = members[bounds[n] : bounds[n + 1]]
                if len(some):
                    begin = first[some[0]]
                    keys, values = prompt[l, n, kept, begin:], prompt[depth + l, n, kept, begin:]
                    _attend(
                        query[g],
                        keys,
                        values,
                        cache[l],
                        cache[depth + l],
                        kept,
                        made + 1,
                        slopes[g],
                        scores,
                        attended[g],
                        some,
                    )
        for r in rows:
            for g in range(heads):
                joined[r, g * dim : (g + 1) * dim] = attended[g, r]
        _linear(weights, p[OUT:], zero, hidden, heads * dim, vectors, joined, rows, h, rows, count)
        for r in rows:
            _add(x[r], _F(1.0), h[r])
            _norm(kind, eps, vectors, p[NORM_2], x[r], h[r])
        size, gated, up, down = sizes[INNER], sizes[GATED], p[UP:], p[DOWN:]
        if p[SPARSE]:
            _linear(tables, p[ROUTER:], zero, experts, hidden, vectors, h, rows, scores, rows, count)
            for r in rows:
                _route(sizes, reals, vectors, p[CORRECTION], scores[r], chosen[r], shares[r])
            for e in range(experts):
                n = zero
                for r in rows:
                    for i in range(k):
                        if chosen[r, i] == e:
                            used_rows[n], used_slots[n] = r, r * k + i
                            n += 1
                if n == 0:
                    continue
                _linear(weights, up, e, 2 * width, hidden, vectors, h, used_rows, inner, used_slots, n)
                for i in range(n):
                    _activate(act, zero + 1, width, inner[used_slots[i]])
                _linear(weights, down, e, hidden, width, vectors, inner, used_slots, out, used_slots, n)
            for r in rows:
                for i in range(k):
                    _add(x[r], shares[r, i], out[r * k + i])
            size, gated, up, down = sizes[SHARED_INNER], zero + 1, p[SHARED_UP:], p[SHARED_DOWN:]
        if size:
            _linear(weights, up, zero, size * (1 + gated), hidden, vectors, h, rows, inner, one_each, count)
            for i in one_each:
                _activate(act, gated, size, inner[i])
            _linear(weights, down, zero, hidden, size, vectors, inner, one_each, out, one_each, count)
            for r in rows:
                _add(x[r], _F(1.0), out[r * k])
    for r in rows:
        _norm(kind, eps, vectors, sizes[LAST_NORM], x[r], h[r])
    _linear(tables, sizes[HEAD:], zero, sizes[VOCAB], hidden, vectors, h, rows, logits, rows, count)
