"""What Triton's counters say about the time between two readings."""

import pytest

from accel_lib.triton.statistics import Statistics

COUNTS = {
    "requests": 4,
    "failures": 1,
    "inferences": 6,
    "executions": 3,
    "cache_hits": 0,
    "queue_ns": 8_000_000,
    "compute_input_ns": 2_000_000,
    "compute_infer_ns": 20_000_000,
    "compute_output_ns": 2_000_000,
    "total_ns": 36_000_000,
}


def reading(times=1):
    counts = {name: times * count for name, count in COUNTS.items()}
    return Statistics(**counts, batch_sizes={1: times, 2: 2 * times}, batch_ns={1: 3_000_000, 2: 9_000_000 * times})


def test_times_are_per_request_per_text_and_per_batch_size():
    seen = reading()
    assert (seen.queue_ms, seen.per_request_ms("compute_infer"), seen.per_request_ms("total")) == (2.0, 5.0, 9.0)
    assert seen.text_ms == 2.0
    assert seen.batch_ms == {1: 3.0, 2: 4.5}
    assert seen.queue_share == 0.25


def test_instances_are_busy_for_part_of_their_time_and_never_for_more_than_all_of_it():
    assert reading().busy(0.048) == pytest.approx(0.25)
    assert reading().busy(0.012, instance_count=2) == pytest.approx(0.5)
    assert reading().busy(0.001) == 1.0


def test_without_a_request_every_time_is_zero():
    idle = reading() - reading()
    assert (idle.queue_ms, idle.text_ms, idle.mean_batch_size, idle.queue_share) == (0, 0, 0, 0)


def test_readings_of_several_measurements_add_up():
    both = reading() + (reading(3) - reading(1))
    assert (both.requests, both.batch_sizes, both.batch_ns) == (12, {1: 3, 2: 6}, {1: 3_000_000, 2: 27_000_000})
