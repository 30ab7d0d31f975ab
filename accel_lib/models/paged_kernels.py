"""What stands between the products of `accel_lib.models.paged_decoder`, as kernels in Triton's language.

A token's step has little to compute and much to start, so each operation is one kernel. Attention reads each text's own
pages up to its own length, keeps the running maximum and sum of its softmax, and is split over long texts where there
are few of them. Sums are in float32. https://triton-lang.org/main/getting-started/tutorials/06-fused-attention.html
"""

# ruff: noqa: N803 (what is fixed when a kernel is compiled is written in capitals)
from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel_lib.models.paged_decoder import PAGE_TOKENS, Linear, Norm, Shape, Tokens

_TILE_BYTES = 32_768  # of keys at a time, and of values: two of each fit into a multiprocessor
_MOST_TILE = 128
_PROMPT_TILE = 64
_MANY_ROWS = 128  # of a product: shared by twice as many threads
_LEAST_ROWS = 16  # of a product on tensor cores
_UNSPLIT_TOKENS = 512  # a text of that many is read by one program faster than by several whose parts are joined
_MOST_SPLITS = 16
_WIDTH = 1024  # numbers at a time, where each stands for itself
_LONGEST_ROW = 16_384  # of a weight that one program reads whole
_ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1, "gelu": 2}
_LOG2_E = 1.4426950408889634


@functools.cache
def _processors() -> int:
    return int(torch.cuda.get_device_properties("cuda").multi_processor_count)


def plan(shape: Shape, *, blocks: int, block: int, context: int) -> int:
    """As `Operations.plan`: the parts that each text is split into."""
    if block > 1 or context <= _UNSPLIT_TOKENS:
        return 1
    wanted = min(_MOST_SPLITS, 2 * _processors() // (blocks * shape.kv_heads), 2 * context // _UNSPLIT_TOKENS)
    return 1 << max(wanted, 1).bit_length() - 1  # a power of two


def add_norm(total: Tensor, addend: Tensor | None, norm: Norm) -> Tensor:
    """As `Operations.add_norm`."""
    tokens, width = total.shape
    normed = torch.empty((tokens, width), dtype=norm.weight.dtype, device=total.device)
    _add_norm[(tokens,)](
        total,
        total if addend is None else addend,
        norm.weight,
        normed,
        norm.epsilon,
        width,
        ADDS=addend is not None,
        WIDTH=triton.next_power_of_2(width),
    )
    return normed


@triton.jit
def _add_norm(total, addend, weight, normed, epsilon, width, ADDS: tl.constexpr, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    inside = columns < width
    at = tl.program_id(0).to(tl.int64) * width + columns
    values = tl.load(total + at, mask=inside, other=0.0)
    if ADDS:
        values += tl.load(addend + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + at, values, mask=inside)
    scale = tl.rsqrt(tl.sum(values * values) / width + epsilon)
    factors = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + at, (values * scale * factors).to(normed.dtype.element_ty), mask=inside)


def product(values: Tensor, linear: Linear) -> Tensor:
    """As `Operations.product`: of one token, which reads each weight once, by a kernel that does nothing else."""
    tokens, depth = values.shape
    if tokens > 1 or depth > _LONGEST_ROW:
        return torch.nn.functional.linear(values, linear.weight, linear.bias)
    width = linear.weight.shape[0]
    found = values.new_empty((1, width))
    tile = triton.next_power_of_2(depth)
    rows, warps = (4, 8) if 1024 < tile <= 4096 else (2, 4)  # measured on an H200, for the shapes of 135M and 1.5B
    _product[(triton.cdiv(width, rows),)](
        values,
        linear.weight,
        values if linear.bias is None else linear.bias,
        found,
        width,
        depth,
        ADDS=linear.bias is not None,
        ROWS=rows,
        DEPTH=tile,
        num_warps=warps,
    )
    return found


@triton.jit
def _product(values, weight, bias, found, width, depth, ADDS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, DEPTH)
    there, inside = rows < width, columns < depth
    asked = tl.load(values + columns, mask=inside, other=0.0).to(tl.float32)
    at = weight + rows[:, None] * depth + columns[None, :]
    weights = tl.load(at, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
    sums = tl.sum(weights * asked[None, :], 1)
    if ADDS:
        sums += tl.load(bias + rows, mask=there, other=0.0).to(tl.float32)
    tl.store(found + rows, sums.to(found.dtype.element_ty), mask=there)


def rotate_and_store(
    joined: Tensor, cache: Tensor, rotation: Tensor, norms: tuple[Norm, Norm] | None, at: Tokens, shape: Shape
) -> Tensor:
    """As `Operations.rotate_and_store`; the queries are turned where they are."""
    every = shape.heads + 2 * shape.kv_heads
    query_norm, key_norm = norms or (Norm(rotation, 0.0), Norm(rotation, 0.0))
    _rotate_and_store[(joined.shape[0], every)](
        joined,
        cache[0],
        cache[1],
        rotation[0],
        rotation[1],
        query_norm.weight,
        key_norm.weight,
        query_norm.epsilon,
        at.positions,
        at.places,
        HEADS=shape.heads,
        KV_HEADS=shape.kv_heads,
        HALF=shape.head_size // 2,
        HALF_TILE=triton.next_power_of_2(shape.head_size // 2),
        NORMED=norms is not None,
        num_warps=1,
    )
    return joined.view(joined.shape[0], every, shape.head_size)[:, : shape.heads]


@triton.jit
def _rotate_and_store(
    joined,
    keys,
    values,
    cosines,
    sines,
    query_weight,
    key_weight,
    epsilon,
    positions,
    places,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_TILE: tl.constexpr,
    NORMED: tl.constexpr,
):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, HALF_TILE)
    inside = columns < HALF
    source = joined + (token * (HEADS + 2 * KV_HEADS) + head) * (2 * HALF) + columns
    first = tl.load(source, mask=inside, other=0.0)
    second = tl.load(source + HALF, mask=inside, other=0.0)
    place = tl.load(places + token) * (KV_HEADS * 2 * HALF)
    if head >= HEADS + KV_HEADS:
        target = values + place + (head - HEADS - KV_HEADS) * (2 * HALF) + columns
        tl.store(target, first, mask=inside)
        tl.store(target + HALF, second, mask=inside)
    else:
        one, two = first.to(tl.float32), second.to(tl.float32)
        if NORMED:
            scale = tl.rsqrt((tl.sum(one * one) + tl.sum(two * two)) / (2 * HALF) + epsilon)
            weight = key_weight
            if head < HEADS:
                weight = query_weight
            one *= scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
            two *= scale * tl.load(weight + HALF + columns, mask=inside, other=0.0).to(tl.float32)
        angle = tl.load(positions + token) * HALF + columns
        cosine = tl.load(cosines + angle, mask=inside, other=0.0)
        sine = tl.load(sines + angle, mask=inside, other=0.0)
        target = source
        if head >= HEADS:
            target = keys + place + (head - HEADS) * (2 * HALF) + columns
        tl.store(target, (one * cosine - two * sine).to(keys.dtype.element_ty), mask=inside)
        tl.store(target + HALF, (two * cosine + one * sine).to(keys.dtype.element_ty), mask=inside)


def attend(query: Tensor, cache: Tensor, at: Tokens, shape: Shape) -> Tensor:
    """As `Operations.attend`."""
    tokens, splits = query.shape[0], at.plan
    groups = shape.heads // shape.kv_heads
    rows = max(_LEAST_ROWS, triton.next_power_of_2(at.block * groups))
    width = triton.next_power_of_2(shape.head_size)
    row_bytes = width * query.element_size()
    mixed = torch.empty((tokens, shape.heads, shape.head_size), dtype=query.dtype, device=query.device)
    parts = mixed
    if splits > 1:
        parts = mixed.new_empty((tokens, shape.heads, splits, shape.head_size), dtype=torch.float32)
    sums = mixed.new_empty((2, tokens, shape.heads, splits), dtype=torch.float32)
    _attend[(tokens // at.block, shape.kv_heads, splits)](
        query,
        cache[0],
        cache[1],
        at.tables,
        at.slots,
        at.positions,
        parts,
        sums[0],
        sums[1],
        shape.scaling * _LOG2_E,
        query.stride(0),
        at.tables.stride(0),
        BLOCK=at.block,
        GROUPS=groups,
        HEADS=shape.heads,
        KV_HEADS=shape.kv_heads,
        SIZE=shape.head_size,
        WIDTH=width,
        ROWS=rows,
        PAGE=PAGE_TOKENS,
        TILE=min(_MOST_TILE if at.block == 1 else _PROMPT_TILE, _TILE_BYTES // row_bytes),
        SPLITS=splits,
        num_warps=4 if rows < _MANY_ROWS else 8,
        num_stages=3 if at.block == 1 and row_bytes <= _TILE_BYTES // 2 // _MOST_TILE else 2,
    )
    if splits > 1:
        _join[(tokens * shape.heads,)](
            parts,
            sums[0],
            sums[1],
            mixed,
            SIZE=shape.head_size,
            WIDTH=width,
            SPLITS=splits,
        )
    return mixed.view(tokens, -1)


@triton.jit
def _attend(
    query,
    keys,
    values,
    tables,
    slots,
    positions,
    parts,
    highest_of,
    sum_of,
    scale,
    query_stride,
    table_stride,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One block of queries, for the heads that share a head of keys, over one part of their text."""
    block, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, columns, steps = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, TILE)
    token = block * BLOCK + rows // GROUPS
    head = kv_head * GROUPS + rows % GROUPS
    real = rows < BLOCK * GROUPS
    inside = real[:, None] & (columns < SIZE)[None, :]
    position = tl.load(positions + token, mask=real, other=-1)
    table = tables + tl.load(slots + block * BLOCK) * table_stride
    asked = tl.load(query + (token * query_stride + head * SIZE)[:, None] + columns[None, :], mask=inside, other=0.0)

    seen = tl.max(position) + 1
    share = tl.cdiv(tl.cdiv(seen, TILE), SPLITS) * TILE
    begin = split * share
    end = tl.minimum(begin + share, seen)
    highest = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(begin, end, TILE):
        place = start + steps
        there = place < end
        page = tl.load(table + place // PAGE, mask=there, other=0).to(tl.int64)
        at = (page * PAGE + place % PAGE) * (KV_HEADS * SIZE) + kv_head * SIZE
        numbers = there[:, None] & (columns < SIZE)[None, :]
        key = tl.load(keys + at[:, None] + columns[None, :], mask=numbers, other=0.0)
        value = tl.load(values + at[:, None] + columns[None, :], mask=numbers, other=0.0)
        score = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(there[None, :] & (place[None, :] <= position[:, None]), score, -1e30)
        higher = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weight, 1)
        mixed = mixed * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        highest = higher
    row = token * HEADS + head
    if SPLITS == 1:
        target = parts + (row * SIZE)[:, None] + columns[None, :]
        tl.store(target, (mixed / total[:, None]).to(parts.dtype.element_ty), mask=inside)
    else:
        part = row * SPLITS + split
        tl.store(parts + (part * SIZE)[:, None] + columns[None, :], mixed, mask=inside)
        tl.store(highest_of + part, highest, mask=real)
        tl.store(sum_of + part, total, mask=real)


@triton.jit
def _join(parts, highest_of, sum_of, mixed, SIZE: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    """The parts of one head of one token, each weighted by its share of the softmax."""
    row, columns, splits = tl.program_id(0), tl.arange(0, WIDTH), tl.arange(0, SPLITS)
    inside = columns < SIZE
    highest = tl.load(highest_of + row * SPLITS + splits)
    share = tl.exp2(highest - tl.max(highest))
    total = tl.sum(share * tl.load(sum_of + row * SPLITS + splits))
    at = parts + ((row * SPLITS + splits) * SIZE)[:, None] + columns[None, :]
    found = tl.sum(tl.load(at, mask=inside[None, :], other=0.0) * share[:, None], 0) / total
    tl.store(mixed + row * SIZE + columns, found.to(mixed.dtype.element_ty), mask=inside)


def gated(joined: Tensor, activation: str) -> Tensor:
    """As `Operations.gated`."""
    tokens, width = joined.shape[0], joined.shape[1] // 2
    found = joined.new_empty((tokens, width))
    _gated[(tokens, triton.cdiv(width, _WIDTH))](joined, found, width, KIND=_ACTIVATIONS[activation], WIDTH=_WIDTH)
    return found


@triton.jit
def _gated(joined, found, width, KIND: tl.constexpr, WIDTH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < width
    gate = tl.load(joined + token * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(joined + token * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
    if KIND == 0:
        gate *= tl.sigmoid(gate)
    elif KIND == 1:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        gate *= tl.sigmoid(2 * inner)  # half of 1 + tanh(inner)
    else:
        gate *= 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(found + token * width + columns, (gate * up).to(found.dtype.element_ty), mask=inside)


def add_noise(logits: Tensor, temperature: Tensor, keys: Tensor) -> Tensor:
    """As `Operations.add_noise`."""
    rows, vocabulary = logits.shape
    noisy = torch.empty((rows, vocabulary), dtype=torch.float32, device=logits.device)
    _add_noise[(rows, triton.cdiv(vocabulary, _WIDTH))](logits, temperature, keys, noisy, vocabulary, WIDTH=_WIDTH)
    return noisy


@triton.jit
def _add_noise(logits, temperature, keys, noisy, vocabulary, WIDTH: tl.constexpr):
    """Shares below 0.001 by the first terms of their logarithm's series, as 1 less them rounds."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < vocabulary
    values = tl.load(logits + row * vocabulary + columns, mask=inside, other=0.0).to(tl.float32)
    heat = tl.load(temperature + row)
    if heat > 0:
        mixed = tl.load(keys + row).to(tl.uint64, bitcast=True) + (columns + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB
        mixed = mixed ^ (mixed >> 31)
        share = ((mixed >> 24).to(tl.float32) + 0.5) / 1099511627776.0
        waited = tl.where(share < 1e-3, share * (1 + 0.5 * share), -tl.log(1 - share))
        values = values / tl.maximum(heat, 1e-9) - tl.log(waited)
    tl.store(noisy + row * vocabulary + columns, values, mask=inside)
