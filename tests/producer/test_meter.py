"""The line of a meter."""

from __future__ import annotations

from producer.cli.meter import Meter
from producer.submission import Progress


def test_what_is_not_read_to_its_end_shows_no_total_and_no_time_left():
    meter = Meter(as_json=False)
    meter.show(Progress(read=2048))
    meter.show(Progress(read=2048, done=100))
    line = meter.line(Progress(read=2048, done=100))
    assert line.startswith("100/2048+ chunks, ")
    assert "left" not in line
    line = meter.line(Progress(read=2048, done=100, complete=True))
    assert line.startswith("100/2048 chunks, ")
    assert "s left" in line
