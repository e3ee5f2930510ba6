"""What GPUs can do, by name: memory, rates, and what links them to each other and to the host."""

from typing import NamedTuple

GB = 1e9


class Device(NamedTuple):
    """One accelerator. Memory and rates are those of its data sheet, except where it says so."""

    memory: float  # bytes
    peak: float  # dense bfloat16 FLOP/s, summed in float32
    efficiency: float  # the share of the peak that large matrix products reach
    memory_rate: float  # bytes/s from and to its memory
    node: float  # bytes/s that collectives reach between ranks of a node
    across: float  # bytes/s that collectives reach between nodes
    host: float  # bytes/s that copies reach between it and the host's memory, one direction
    words: tuple[str, ...] = ()  # that torch's name of the GPU has, in lower case


# What copies reach of a link: PCIe 4.0 x16 (32 GB/s) and 5.0 x16 (64 GB/s).
PCIE_4, PCIE_5 = 25 * GB, 50 * GB
# Collectives, estimated. Over PCIe: through the host's memory. Across nodes: by a network of
# 100 Gb/s, or by InfiniBand with one card a GPU.
OVER_PCIE, BY_ETHERNET = 15 * GB, 10 * GB

# Data sheets: NVIDIA A100, L4, L40S, RTX A6000, RTX 6000 Ada, H100 (SXM, NVL, PCIe), H200 (SXM,
# NVL), GH200 (96 GB), HGX B200; of the A10G, that of Amazon's g5 machines; of GeForce, the
# architecture papers of GA102 (3090), AD102 (4090) and GB202 (5090). The sheets of Ada and Hopper
# print rates with sparsity; these are half of them. Memory is what torch reports, less than the
# sheet's where errors are corrected.
# The share of the peak in matrix products. H200: measured, 747 TFLOP/s in the products of two 7B
# steps (tests/benchmarks/results/profile_step_7B_*.txt). All others: estimated, lower where the
# power limit of the card is low (L4: 72 W).
DEVICES = {
    "rtx-3090": Device(25.4e9, 71e12, 0.80, 936e9, OVER_PCIE, BY_ETHERNET, PCIE_4, ("rtx", "3090")),
    "rtx-4090": Device(
        25.3e9, 165.2e12, 0.85, 1008e9, OVER_PCIE, BY_ETHERNET, PCIE_4, ("rtx", "4090")
    ),
    "rtx-5090": Device(
        33.7e9, 209.5e12, 0.85, 1792e9, OVER_PCIE, BY_ETHERNET, PCIE_5, ("rtx", "5090")
    ),
    "a10g": Device(23.7e9, 70e12, 0.80, 600e9, OVER_PCIE, BY_ETHERNET, PCIE_4, ("a10g",)),
    "l4": Device(23.7e9, 121e12, 0.50, 300e9, OVER_PCIE, BY_ETHERNET, PCIE_4 / 2, ("l4",)),
    "a6000": Device(
        51.0e9, 154.8e12, 0.75, 768e9, OVER_PCIE, BY_ETHERNET, PCIE_4, ("rtx", "a6000")
    ),
    "rtx-6000-ada": Device(
        51.0e9, 364.2e12, 0.70, 960e9, OVER_PCIE, BY_ETHERNET, PCIE_4, ("rtx", "6000", "ada")
    ),
    "l40s": Device(47.7e9, 362e12, 0.70, 864e9, OVER_PCIE, BY_ETHERNET, PCIE_4, ("l40s",)),
    "a100-40": Device(42.3e9, 312e12, 0.80, 1.56e12, 230e9, 160e9, PCIE_4, ("a100", "40gb")),
    "a100-80": Device(85.0e9, 312e12, 0.80, 2.04e12, 230e9, 160e9, PCIE_4, ("a100", "80gb")),
    "h100": Device(85.0e9, 989.4e12, 0.72, 3.35e12, 340e9, 330e9, PCIE_5, ("h100",)),
    "h100-nvl": Device(
        100e9, 835e12, 0.70, 3.9e12, OVER_PCIE, BY_ETHERNET, PCIE_5, ("h100", "nvl")
    ),
    "h100-pcie": Device(
        85.0e9, 756e12, 0.70, 2.0e12, OVER_PCIE, BY_ETHERNET, PCIE_5, ("h100", "pcie")
    ),
    "gh200": Device(101e9, 989.4e12, 0.72, 4.0e12, 340e9, 330e9, 300e9, ("gh200",)),
    "h200": Device(149.6e9, 989.4e12, 0.755, 4.8e12, 340e9, 330e9, PCIE_5, ("h200",)),
    "h200-nvl": Device(
        149.6e9, 835.5e12, 0.70, 4.8e12, OVER_PCIE, BY_ETHERNET, PCIE_5, ("h200", "nvl")
    ),
    "b200": Device(191e9, 2250e12, 0.70, 7.7e12, 680e9, 330e9, PCIE_5, ("b200",)),
}
# GPUs of the same figures under another name, words in the names of GPUs of other figures (RTX 3090
# Ti, RTX 4090 D, a part of a GPU), and those that cannot run a bfloat16 policy.
SAME_AS = {"a800": "a100", "h800": "h100"}
OTHER_FIGURES = {"laptop", "ti", "d", "mig"}
WITHOUT_BFLOAT16 = ("v100", "t4", "p100", "rtx-2080-ti")


def find_device(gpu: str) -> str | None:
    """The name in DEVICES of a GPU, given the name that torch reports; None where it is not known.

    Of several that match (`h100` and `h100-nvl`), the one with most words.
    """
    words = {SAME_AS.get(word, word) for word in gpu.lower().replace("-", " ").split()}
    if words & OTHER_FIGURES:
        return None
    found = [name for name, device in DEVICES.items() if words.issuperset(device.words)]
    return max(found, key=lambda name: len(DEVICES[name].words), default=None)


def described_device(memory: float, bandwidth: float, rate: float) -> Device:
    """A GPU that is not in DEVICES. It is taken to be linked by PCIe 4.0 and Ethernet.

    Args: memory: GB. bandwidth: of its memory, GB/s. rate: dense bfloat16, TFLOP/s.
    """
    return Device(memory * GB, rate * 1e12, 0.75, bandwidth * GB, OVER_PCIE, BY_ETHERNET, PCIE_4)
