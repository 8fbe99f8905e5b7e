"""Named tensors in one block of device memory, with a page-locked mirror where the host writes or reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.cuda_driver import Cuda

ALIGNMENT = 256
"""Bytes; what TensorRT and vector loads want."""

Specs = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and type by name."""


class Arena:
    """Tensors of fixed shapes, one behind the other in one allocation, so that one copy moves them all.

    Args:
        specs: shape and type of every tensor.
        mirrored: whether there is a page-locked copy on the host.
    """

    def __init__(self, cuda: Cuda, specs: Specs, *, mirrored: bool) -> None:
        self.shapes = {name: shape for name, (shape, _) in specs.items()}
        self.dtypes = {name: dtype for name, (_, dtype) in specs.items()}
        self._cuda = cuda
        self._begins: dict[str, int] = {}
        end = 0
        for name in specs:
            self._begins[name] = end
            end += -(-self.nbytes(name) // ALIGNMENT) * ALIGNMENT
        self.size = end
        self._device = cuda.device_buffer(end)
        self._host = cuda.pinned(end) if mirrored else None

    def nbytes(self, name: str) -> int:
        """Bytes of one tensor."""
        return int(np.prod(self.shapes[name], dtype=np.int64)) * self.dtypes[name].itemsize

    def address(self, name: str) -> int:
        """On the device."""
        return self._device.address + self._begins[name]

    def addresses(self) -> dict[str, int]:
        """Of all tensors."""
        return {name: self.address(name) for name in self.shapes}

    def host(self, name: str) -> NDArray[Any]:
        """The mirror of one tensor."""
        return self._mirror(name).view(self.dtypes[name]).reshape(self.shapes[name])

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copies arrays into the mirror, floats converted to the tensors' types."""
        for name, array in arrays.items():
            np.copyto(self.host(name), array, casting="same_kind")

    def upload(self, stream: int) -> None:
        """Queues a copy of the whole mirror to the device."""
        if self._host is not None:
            self._cuda.upload(self._device.address, self._host, self.size, stream)

    def download(self, stream: int) -> None:
        """Queues a copy of the whole block to the mirror."""
        if self._host is not None:
            self._cuda.download(self._host, self._device.address, self.size, stream)

    def clear(self, name: str, stream: int) -> None:
        """Queues zeros for one tensor."""
        self._cuda.fill(self.address(name), 0, self.nbytes(name), stream)

    def _mirror(self, name: str) -> NDArray[np.uint8]:
        if self._host is None:
            raise ValueError(f"{name} has no mirror on the host")
        begin = self._begins[name]
        return self._host[begin : begin + self.nbytes(name)]
