"""TOML reading on every Python that a vehicle may have: JetPack 6 comes with 3.10, whose library has no reader."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from tomllib import TOMLDecodeError, loads
else:
    from tomli import TOMLDecodeError, loads

__all__ = ["TOMLDecodeError", "loads"]
