"""A real Triton server out of its wheel: start it, configure it, talk to it."""
