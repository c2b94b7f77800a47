import torch
from torch import nn

from vlatrack.models.storage import store_parameters


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.output = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        self.output.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("centres", torch.linspace(-1, 1, 5))


def test_parameters_are_stored_in_bf16_while_buffers_and_ties_stay() -> None:
    module = Tied()
    expected = module.embed.weight.detach().bfloat16()
    store_parameters(module, torch.bfloat16)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert torch.equal(module.embed.weight, expected)
    assert module.output.weight is module.embed.weight
    assert (module.frozen.requires_grad, module.embed.weight.requires_grad) == (False, True)
    assert module.centres.dtype == torch.float32


def test_parameters_without_contents_can_be_stored_in_bf16_too() -> None:
    with torch.device("meta"):
        module = Tied()
    store_parameters(module, torch.bfloat16)
    assert {(parameter.dtype, parameter.is_meta) for parameter in module.parameters()} == {(torch.bfloat16, True)}
