"""The continuous ActionHead: a whole action chunk at once, from the hidden states of the prompt.

Legend: R rows, P prompt positions, H steps, A numbers of an action, D backbone width, E head width.
"""

import torch
from torch import Tensor, nn

from vlatrack.models.heads.encoder import encode


class ActionHead(nn.Module):
    """Learned queries attend to the prompt in a small encoder; an MLP-ResNet turns them into actions.

    As in RynnVLA-002, H * A queries of the backbone's width are appended to the prompt's hidden states, both are
    projected to the head's width, a post-norm encoder mixes them, and the A outputs of each step are concatenated and
    read out as its A numbers.

    With ``mask_padding`` a row's prediction does not depend on the other rows of its batch. The reference pads prompts
    with zero vectors and attends to them; ``mask_padding=False`` does the same.
    """

    def __init__(
        self,
        *,
        backbone_width: int,
        time_horizon: int,
        action_dim: int,
        reduced_width: int,
        encoder_layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        self.mask_padding = mask_padding
        self.time_horizon, self.action_dim = time_horizon, action_dim
        self.queries = nn.Parameter(torch.randn(time_horizon * action_dim, backbone_width) * 0.02)
        self.projection = nn.Linear(backbone_width, reduced_width)
        layer = nn.TransformerEncoderLayer(
            reduced_width, heads, dim_feedforward=4 * reduced_width, dropout=dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, encoder_layers, norm=nn.LayerNorm(reduced_width), enable_nested_tensor=False
        )
        self.readout = MlpResNet(inputs=action_dim * reduced_width, width=reduced_width, outputs=action_dim)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Predict the chunk.

        Args:
            hidden: the prompt's hidden states [R, P, D], right-padded.
            lengths: int64 [R], the length of each prompt without padding.

        Returns:
            actions [R, H, A], trained towards [-1, 1] but not bounded.
        """
        rows, positions, _ = hidden.shape
        padding = torch.arange(positions, device=hidden.device) >= lengths[:, None]
        if not self.mask_padding:
            hidden = hidden.masked_fill(padding[..., None], 0.0)
        queries = self.queries.to(hidden.dtype).expand(rows, -1, -1)
        features = self.projection(torch.cat([hidden, queries], dim=1))
        ignored = torch.cat([padding, padding.new_zeros(rows, queries.shape[1])], dim=1) if self.mask_padding else None
        mixed = encode(self.encoder, features, ignored, last=queries.shape[1])
        return self.readout(mixed.reshape(rows, self.time_horizon, -1))


class MlpResNet(nn.Module):
    """LayerNorm, linear, two residual blocks, LayerNorm, linear (the readout of OpenVLA-OFT's L1 head)."""

    def __init__(self, *, inputs: int, width: int, outputs: int, blocks: int = 2) -> None:
        super().__init__()
        self.norm_in, self.linear_in = nn.LayerNorm(inputs), nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU()) for _ in range(blocks)
        )
        self.norm_out, self.linear_out = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        x = torch.relu(self.linear_in(self.norm_in(x)))
        for block in self.blocks:
            x = x + block(x)
        return self.linear_out(self.norm_out(x))
