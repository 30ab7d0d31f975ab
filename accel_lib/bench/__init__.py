"""Compare candidates in one process: speed, agreement with the reference, ablation, roofline, memory."""
