"""Measure candidates, put load on a served model, and find its best setting."""
