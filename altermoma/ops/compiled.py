"""Loops compiled to machine code: the frame's irregular work, which numpy can only do in many passes over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., object])


def compiled(signature: str, *, reorder: bool = False) -> Callable[[Kernel], Kernel]:
    """Compiles a function for one signature, on one thread and without the interpreter's lock.

    With `reorder`, sums of floats may be taken in any order, several at a time; numbers must be finite.

    The machine code is kept beside the module, else (a read-only installation) in the user's cache folder; the
    variable NUMBA_CACHE_DIR names another. Where none can be written, every process compiles anew.
    """

    def compile_now(function: Kernel) -> Kernel:
        def just_in_time(*, cache: bool) -> Any:
            return numba.njit(
                signature,
                cache=cache,
                nogil=True,
                error_model="numpy",
                boundscheck=False,
                fastmath={"reassoc", "nnan", "ninf", "nsz"} if reorder else False,
            )(function)

        try:
            kernel = just_in_time(cache=True)
        except OSError:  # a full disk: the vehicle drives on all the same
            kernel = just_in_time(cache=False)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            kernel = just_in_time(cache=False)
        return cast(Kernel, kernel)

    return compile_now


def inlined(function: Kernel) -> Kernel:
    """For helpers of compiled functions; called from Python they stay Python."""
    helper: Any = numba.extending.register_jitable(function)
    return cast(Kernel, helper)
