"""Benchmarks: ours beside what you would pick instead."""
