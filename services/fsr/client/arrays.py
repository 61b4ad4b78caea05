"""Tensors of the wire as arrays of NumPy, which only those need who ask for features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsr.v1 import types_pb2

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["array_of", "has_numpy"]


def has_numpy() -> bool:
    """Whether NumPy can be imported."""
    try:
        import numpy  # noqa: F401
    except ImportError:
        return False
    return True


def array_of(tensor: types_pb2.Tensor) -> NDArray[Any]:
    """The numbers of a tensor, in its shape: float16 of fp16, else float32. The array is the caller's own.

    Raises ValueError if the bytes do not fit, or if their format is unknown.
    """
    import numpy as np

    match tensor.dtype:
        case types_pb2.DTYPE_FP32:
            array: NDArray[Any] = np.frombuffer(bytearray(tensor.data), "<f4")
        case types_pb2.DTYPE_FP16:
            array = np.frombuffer(bytearray(tensor.data), "<f2")
        case types_pb2.DTYPE_BF16:  # the upper half of a float32
            array = (np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16).view(np.float32)
        case types_pb2.DTYPE_INT8:
            steps = np.frombuffer(tensor.data, np.int8).reshape(tensor.shape[0], -1)
            array = steps * np.frombuffer(tensor.scales, "<f4")[:, None]
        case _:
            raise ValueError(f"dtype {tensor.dtype} is unknown")
    return array.reshape(tuple(tensor.shape))
