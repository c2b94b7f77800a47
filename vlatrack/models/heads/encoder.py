"""The layers of an `nn.TransformerEncoder`, computed only where their result is read.

Legend: R rows, P positions, Q of them whose result is read, E width.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatrack.models.dropout import dropout


def encode(encoder: nn.TransformerEncoder, features: Tensor, ignored: Tensor | None, *, last: int) -> Tensor:
    """The encoder's output [R, Q, E] at the ``last`` Q positions of ``features`` [R, P, E].

    To the final layer the other positions are keys and values only, so it computes no output for them.

    Args:
        encoder: of post-norm layers with ReLU.
        ignored: bool [R, P], true where no position may attend to; None: nowhere.
    """
    *layers, final = cast(Iterable[nn.TransformerEncoderLayer], encoder.layers)
    for layer in layers:
        features = _layer_output(layer, features, features, ignored)
    queries = _layer_output(final, features[:, -last:], features, ignored)
    return queries if encoder.norm is None else encoder.norm(queries)


def _layer_output(
    layer: nn.TransformerEncoderLayer, queries: Tensor, features: Tensor, ignored: Tensor | None
) -> Tensor:
    """The layer's output [R, Q, E] at the queries, which are some positions of ``features`` or all of them."""

    def drop(x: Tensor, by: nn.Dropout) -> Tensor:
        return dropout(x, by.p, training=by.training)

    attended = _attend(layer.self_attn, queries, features, ignored)
    queries = layer.norm1(queries + drop(attended, layer.dropout1))
    inner = drop(torch.relu(layer.linear1(queries)), layer.dropout)
    return layer.norm2(queries + drop(layer.linear2(inner), layer.dropout2))


def _attend(attention: nn.MultiheadAttention, queries: Tensor, features: Tensor, ignored: Tensor | None) -> Tensor:
    """What the queries [R, Q, E] read from all features [R, P, E]."""
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, attention.embed_dim
    assert weight is not None
    projected = functional.linear(queries, weight[:width], bias[:width])
    keys, values = functional.linear(features, weight[width:], bias[width:]).chunk(2, dim=-1)
    q, k, v = (x.view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2) for x in (projected, keys, values))
    seen = None if ignored is None else ~ignored[:, None, None, :]
    rate = attention.dropout if attention.training else 0.0
    if rate and q.device.type == "cpu":
        mixed = _attend_with_dropout(q, k, v, seen, rate)
    else:
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=rate)
    read: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return read


def _attend_with_dropout(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, rate: float) -> Tensor:
    """`scaled_dot_product_attention`, which has no kernel with dropout on a CPU and draws its numbers one by one."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if seen is not None:
        scores = scores + torch.zeros_like(seen, dtype=scores.dtype).masked_fill_(~seen, -torch.inf)
    return dropout(scores.softmax(dim=-1), rate, training=True) @ v
