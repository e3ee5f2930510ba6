"""The table of GPUs: names as torch reports them, and figures that agree with each other."""

import pytest

from zephyr.training.devices import DEVICES, described_device, find_device


@pytest.mark.parametrize(
    "gpu,name",
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA A800-SXM4-80GB", "a100-80"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("Tesla V100-SXM2-16GB", None),
        ("", None),
    ],
)
def test_a_gpu_is_found_by_the_name_that_torch_reports(gpu: str, name: str | None) -> None:
    """Fails where an L40S is taken for an L4, a GH200 for an H200, or an unknown card, or a part of
    one, for one that is known."""
    assert find_device(gpu) == name


def test_figures_are_of_one_unit() -> None:
    """Bytes, FLOP/s and bytes/s of every card lie where cards lie, from 24 GB on. Fails where a
    row has GB for bytes, or columns changed places."""
    for name, device in DEVICES.items():
        assert 23e9 < device.memory < 200e9, name
        assert 50e12 < device.peak < 3e15 and 0.4 < device.efficiency < 0.9, name
        assert 250e9 < device.memory_rate < 9e12, name
        assert device.host <= device.memory_rate / 10, name
        assert device.across <= device.node <= device.memory_rate, name
    l40 = described_device(48, 864, 181)
    assert (l40.memory, l40.memory_rate, l40.peak) == (48e9, 864e9, 181e12)
