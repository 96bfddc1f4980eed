"""Checksum of the data of a run, to check that the run is resumed with the same data."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset

from fdconv_zoo.data.image import read_bytes

_ROWS_PER_PROCESS = 1000  # starting a process does not pay off for fewer


def data_checksum(tables: Iterable[Dataset], num_workers: int = 0) -> str:
    """Return the SHA-256 of tables: of the content of images (not their names), all other values, and their order.

    `datasets` caches the checksums of the rows, so that unchanged files are read only once.

    Args:
        tables: Tables whose images are undecoded: `bytes`, or else the `path` of a file.
        num_workers: Processes that read images.
    """
    total = hashlib.sha256()
    for table in tables:
        processes = min(num_workers, len(table) // _ROWS_PER_PROCESS)
        rows = table.map(
            _row_checksum,
            remove_columns=table.column_names,
            num_proc=processes if processes > 1 else None,
            desc="Checksums of the data",
        )
        total.update(hashlib.sha256("".join(rows[:]["checksum"]).encode()).digest())
    return total.hexdigest()


def _row_checksum(row: Mapping[str, Any]) -> dict[str, str]:
    digest = hashlib.sha256()
    for name in sorted(row):
        content = read_bytes(row[name]) if isinstance(row[name], dict) else repr(row[name]).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return {"checksum": digest.hexdigest()}
