"""What a summary warns of."""

from __future__ import annotations

import pytest

from altermoma.workflow.summarise import busy


@pytest.mark.parametrize(
    ("conditions", "warned"),
    [
        ({"load_1min": 1.9, "cpus": 2}, False),
        ({"load_1min": 6.0, "cpus": 2}, True),
        ({"load_1min": 6.0, "cpus": 16}, False),
        ({"cpus": 2}, False),
        ({"load_1min": 6.0, "cpus": None}, False),
    ],
)
def test_latencies_of_a_busy_machine_come_with_a_warning(conditions: dict[str, object], warned: bool) -> None:
    notes = busy(conditions)
    assert bool(notes) == warned
    assert all("load 6.0 on 2 processors" in note for note in notes)
