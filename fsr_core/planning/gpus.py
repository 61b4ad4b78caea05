"""GPUs: peak compute, memory, bandwidth and price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fsr_core.checks import check_number

__all__ = ["GPUS", "Gpu", "find_gpu"]

_LAMBDA = "https://lambda.ai/instances, 20 September 2026"
_HYPERSTACK = "https://www.hyperstack.cloud/gpu-pricing, 26 August 2026"
_AWS = "https://aws.amazon.com/ec2/pricing/on-demand, Linux, us-east-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as users write it.
        flops: dense peak of the tensor cores in bf16, FLOP/s.
        memory: bytes.
        bandwidth: peak of the memory, bytes/s.
        price: US dollars an hour, on demand.
        price_source: where and when the price was read.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    price: float
    price_source: str

    def __post_init__(self) -> None:
        for name in ("flops", "memory", "bandwidth", "price"):
            check_number(f"gpu_{name}", getattr(self, name), 1e-9, 1e21)


def _gpu(name: str, tflops: float, gigabytes: float, terabytes_per_second: float, price: float, source: str) -> Gpu:
    return Gpu(
        name=name,
        flops=tflops * 1e12,
        memory=gigabytes * 1e9,
        bandwidth=terabytes_per_second * 1e12,
        price=price,
        price_source=source,
    )


#: By name. Compute, memory and bandwidth are those of NVIDIA's data sheets: the SXM modules of A100 (80 GB), H100, H200
#: and B200 (HGX), the PCIe cards of L40S and L4. Where a sheet gives compute with sparsity, half of it.
GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100", 312, 80, 2.039, 2.79, _LAMBDA),
        _gpu("h100", 989, 80, 3.35, 3.99, _LAMBDA),
        _gpu("h200", 989, 141, 4.8, 3.99, _HYPERSTACK),
        _gpu("b200", 2250, 180, 7.7, 6.69, _LAMBDA),
        _gpu("l40s", 362, 48, 0.864, 1.861, f"{_AWS}, g6e.xlarge"),
        _gpu("l4", 121, 24, 0.3, 0.8048, f"{_AWS}, g6.xlarge"),
    )
}


def find_gpu(name: str, overrides: Mapping[str, float | None] | None = None) -> Gpu:
    """A GPU of the table, with some of its figures replaced. With all four figures given it may be any other GPU.

    Args:
        name: of the GPU, in any case.
        overrides: ``flops``, ``memory``, ``bandwidth``, ``price``, in the units of :class:`Gpu`; None leaves a figure.

    Raises:
        ValueError: an unknown GPU of which a figure is missing, or a figure that is not above 0.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    known = GPUS.get(name.lower())
    if known is None:
        missing = [key for key in ("flops", "memory", "bandwidth", "price") if key not in given]
        if missing:
            raise ValueError(
                f"gpu: {name!r} is unknown; use one of {', '.join(GPUS)}, or give its compute, memory, bandwidth and"
                f" price too (missing: {', '.join(missing)})"
            )
        return Gpu(name=name, price_source="given", **given)
    figures = {key: getattr(known, key) for key in ("flops", "memory", "bandwidth", "price")}
    source = "given" if "price" in given else known.price_source
    return Gpu(name=known.name, price_source=source, **(figures | given))
