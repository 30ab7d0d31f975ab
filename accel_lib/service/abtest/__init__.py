"""Versions of a model side by side: traffic split by weight, shadows, and what they show."""
