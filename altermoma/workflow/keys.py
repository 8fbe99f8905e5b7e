"""What a step's result depends on, as short content keys."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import altermoma
from altermoma.errors import DataError
from altermoma.storage import sha256_of


@functools.cache
def code_version() -> str:
    """Version of the package plus a digest of its sources: a result made by other code is not reused."""
    root = Path(altermoma.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] in {"cli", "report"}:
            continue  # how results are asked for and shown does not change them
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return f"{altermoma.__version__}+{digest.hexdigest()[:12]}"


def data_key(root: Path, version: str) -> str:
    """Digest of a data set's tables. Sensor files are named in the tables and taken as they are."""
    folder = root / version
    tables = sorted(folder.glob("*.json"))
    if not tables:
        raise DataError(
            f"no tables in {folder}",
            expected=f"a nuScenes data set: {version}/*.json beside samples/ and sweeps/",
            remedy="give the folder that holds them with --data, and its version in the recipe's [data]",
        )
    digest = hashlib.sha256()
    for path in tables:
        digest.update(path.name.encode())
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()[:12]
