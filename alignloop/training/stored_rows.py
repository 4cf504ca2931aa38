"""Numbers of safetensors files, read where they lie: a few rows of a matrix, without the matrix. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alignloop.engines.checkpoint import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""bfloat16, which numpy has not, is read as the upper half of a float32's bits."""


def has_floats(tensor: StoredTensor) -> bool:
    """Whether it holds floating-point numbers that can be read here; smaller ones come with scales of their own."""
    return tensor.dtype in _NUMPY


def read_rows(tensor: StoredTensor, rows: Sequence[int]) -> NDArray[np.float32]:
    """[len(rows), ...] rows of a stored tensor for which `has_floats` holds, in float32."""
    import numpy as np

    found = stored_numbers(tensor)[np.asarray(rows, dtype=np.int64)]
    return as_float32(found, tensor)


def stored_numbers(tensor: StoredTensor) -> NDArray[Any]:
    """The numbers as they lie in the file, mapped into memory."""
    import numpy as np

    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype=_NUMPY[tensor.dtype])
    return np.memmap(tensor.file, dtype=_NUMPY[tensor.dtype], mode="r", offset=tensor.start, shape=tensor.shape)


def as_float32(numbers: NDArray[Any], tensor: StoredTensor) -> NDArray[np.float32]:
    """A part of `stored_numbers`, as numbers."""
    import numpy as np

    if tensor.dtype != "BF16":
        return numbers.astype(np.float32)
    widened: NDArray[np.float32] = (numbers.astype(np.uint32) << 16).view(np.float32)
    return widened
