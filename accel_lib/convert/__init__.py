"""Convert a model to ONNX, TensorRT or a PyTorch program, in a precision, and validate it."""
