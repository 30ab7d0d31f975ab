"""What works on the repository and is not in the wheel: run notebooks, write badges."""
