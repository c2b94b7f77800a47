"""What GPUs can do at most, from their makers' data sheets."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Chip:
    """A GPU's limits."""

    flops: float  # operations per second in dense bf16, accumulated in fp32
    bytes_per_s: float  # of its memory
    source: str


_T, _G = 1e12, 1e9

_CHIPS = {
    # The first name that begins the device's own, as torch.cuda.get_device_name has it, counts.
    "NVIDIA B200": Chip(2250 * _T, 8000 * _G, "NVIDIA DGX B200 data sheet: 72 PFLOPS fp8 with sparsity, 8 GPUs"),
    "NVIDIA GH200 144G": Chip(989.4 * _T, 4900 * _G, "NVIDIA GH200 data sheet, HBM3e"),
    "NVIDIA GH200": Chip(989.4 * _T, 4000 * _G, "NVIDIA GH200 data sheet, HBM3"),
    "NVIDIA H200 NVL": Chip(835.5 * _T, 4800 * _G, "NVIDIA H200 data sheet, NVL"),
    "NVIDIA H200": Chip(989.4 * _T, 4800 * _G, "NVIDIA H200 data sheet, SXM"),
    "NVIDIA H100 NVL": Chip(835.5 * _T, 3900 * _G, "NVIDIA H100 data sheet, NVL"),
    "NVIDIA H100 PCIe": Chip(756.5 * _T, 2000 * _G, "NVIDIA H100 data sheet, PCIe"),
    "NVIDIA H100": Chip(989.4 * _T, 3350 * _G, "NVIDIA H100 data sheet, SXM"),
    "NVIDIA A100-SXM4-80GB": Chip(312 * _T, 2039 * _G, "NVIDIA A100 data sheet, 80 GB SXM"),
    "NVIDIA A100 80GB PCIe": Chip(312 * _T, 1935 * _G, "NVIDIA A100 data sheet, 80 GB PCIe"),
    "NVIDIA A100": Chip(312 * _T, 1555 * _G, "NVIDIA A100 data sheet, 40 GB"),
    "NVIDIA L40S": Chip(362 * _T, 864 * _G, "NVIDIA L40S data sheet"),
    "NVIDIA L4": Chip(121 * _T, 300 * _G, "NVIDIA L4 data sheet"),
    "NVIDIA GeForce RTX 4090": Chip(165.2 * _T, 1008 * _G, "NVIDIA Ada architecture white paper"),
}


def known_chip(name: str) -> Chip | None:
    """The chip of that device name; None if it is not in the table."""
    return next((chip for prefix, chip in _CHIPS.items() if name.startswith(prefix)), None)


def chip_of(device: torch.device) -> Chip | None:
    """The chip of a device; None for a CPU, and for a GPU that is not in the table."""
    return known_chip(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
