"""Parts become one file, byte for byte; where they cannot, encoded again; and a difference is noticed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pq_glue
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchserve import glue
from batchserve.errors import StorageError
from batchserve.outputs import RowGroup, Workspace, open_part

SCHEMA = pa.schema([("x", pa.int64()), ("t", pa.string())])


def batch(start: int, rows: int) -> pa.RecordBatch:
    """Return rows numbered from `start`."""
    numbers = range(start, start + rows)
    return pa.RecordBatch.from_pydict({"x": list(numbers), "t": [f"row {i}" for i in numbers]}, schema=SCHEMA)


def part(folder: Path, name: str, start: int, rows: int) -> tuple[Path, list[RowGroup]]:
    """Write a part as a task would."""
    space = Workspace(str(folder), "plan", (("batchserve.plan_id", "plan"),))
    with open_part(space, name, SCHEMA) as writer:
        writer.write(batch(start, rows), [])
        writer.finish()
    path = next(folder.glob(f"{name}.*.parquet"))
    return path, glue._inspected(path)[0]


def refuse(*_: object) -> int:
    """Refuse as pq-glue does when parts differ in their metadata; ours never do."""
    message = "other key-value metadata"
    raise ValueError(message)


def test_row_groups_are_copied_as_they_are(tmp_path: Path) -> None:
    """The glued file has the parts' row groups, with their very bytes, in order."""
    parts = [part(tmp_path, f"p{i}", 10 * i, 10) for i in range(3)]
    expected = [group for _, groups in parts for group in groups]

    found, footer = glue.join([path for path, _ in parts], expected, tmp_path / "out")

    assert found == expected
    assert len(footer) == 64
    assert pq.read_table(tmp_path / "out")["x"].to_pylist() == list(range(30))


def test_parts_that_pq_glue_refuses_are_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind pq-glue stands pyarrow: the same rows, schema and row groups, and their new digests."""
    parts = [part(tmp_path, f"p{i}", 10 * i, 10) for i in range(3)]
    monkeypatch.setattr(pq_glue, "concat", refuse)

    found, _ = glue.join([path for path, _ in parts], [g for _, gs in parts for g in gs], tmp_path / "out")

    assert [group.rows for group in found] == [10, 10, 10]
    assert pq.read_table(tmp_path / "out")["t"].to_pylist() == [f"row {i}" for i in range(30)]
    assert pq.read_schema(tmp_path / "out").metadata[b"batchserve.plan_id"] == b"plan"


def test_other_rows_than_the_receipts_state_are_noticed(tmp_path: Path) -> None:
    """A part whose bytes are not those of its receipt does not get into an output unseen."""
    path, groups = part(tmp_path, "p0", 0, 10)
    _, others = part(tmp_path, "p1", 5, 10)

    with pytest.raises(StorageError, match="differs from what was scored"):
        glue.join([path], [*groups[:-1], *others[-1:]], tmp_path / "out")


def test_a_row_group_that_cannot_be_decoded_is_noticed(tmp_path: Path) -> None:
    """Page checksums are verified on the way out: a flipped byte in a page is exit 74."""
    path, groups = part(tmp_path, "p0", 0, 10)
    damaged = bytearray(path.read_bytes())
    damaged[4 + groups[0].size_bytes - 3] ^= 0xFF
    path.write_bytes(damaged)

    with pytest.raises(StorageError, match="cannot be read back"):
        glue.join([path], groups, tmp_path / "out")


_GLUED = """
import sys
from pathlib import Path
from batchserve import glue
pq_glue = glue.pq_glue
pq_glue.concat(sys.argv[2:], sys.argv[1])
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def test_gluing_takes_no_more_memory_for_more_parts(tmp_path: Path) -> None:
    """What is copied is not kept: 80 MB of parts take less than 20 MB more than 4 MB of them."""
    path = tmp_path / "part.parquet"
    numbers = np.random.default_rng(1).standard_normal(250_000)
    pq.write_table(pa.table({"x": numbers}), path, use_dictionary=False)

    def peak_kb(count: int) -> int:
        command = [sys.executable, "-c", _GLUED, str(tmp_path / "out"), *[str(path)] * count]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    assert peak_kb(40) - peak_kb(2) < 20_000
