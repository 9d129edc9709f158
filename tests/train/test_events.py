"""The events of a run outlive kills and are never cut back."""

from datetime import datetime
from pathlib import Path

from seer_pipe.train.events import Events, read_events


def test_events_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []
    events = Events(tmp_path)
    events.write("start", 0, world=2)
    events.write("checkpoint", 5)
    found = read_events(tmp_path)
    assert [(event["event"], event["step"]) for event in found] == [("start", 0), ("checkpoint", 5)]
    assert found[0]["world"] == 2
    assert datetime.fromisoformat(found[0]["time"]).tzinfo is not None


def test_a_line_that_a_kill_cut_short_spoils_no_other(tmp_path: Path) -> None:
    Events(tmp_path).write("start", 0)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": "2026')
    Events(tmp_path).write("resume", 0)
    assert [event["event"] for event in read_events(tmp_path)] == ["start", "resume"]
