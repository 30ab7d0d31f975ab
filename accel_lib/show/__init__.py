"""What a reader sees: predictions, checks and figures."""
