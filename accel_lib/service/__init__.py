"""An HTTP gateway in front of Triton that OpenAI's, NVIDIA's and text-embeddings-inference's clients use unmodified."""
