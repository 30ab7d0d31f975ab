"""Find settings that meet a latency target, hold it while the load changes, and replay an autoscaler."""
