# NVIDIA's Triton with this project's Python backend. 24.11 and newer have Python 3.12; pyt-python holds no other backends.
#   docker build --file deploy/docker/triton.Dockerfile --tag accel-triton:0.2.0 .
# Without a GPU, smaller: --build-arg EXTRAS=models,convert,openvino
# With your models in it (store.kind: image): FROM accel-triton:0.2.0, then COPY your_repository /models
ARG BASE=nvcr.io/nvidia/tritonserver:24.12-pyt-python-py3
# hadolint ignore=DL3006
FROM ${BASE}
ARG EXTRAS=models,convert,tensorrt
WORKDIR /app
COPY . .
# Among the system's packages: Triton's Python stub ignores PYTHONPATH. In place, since accel build takes the repository's
# own model.py and config.pbtxt from here.
# hadolint ignore=DL3013
RUN python3 -m pip install --no-cache-dir --break-system-packages --constraint deploy/docker/constraints.txt \
    --editable ".[triton,${EXTRAS}]" \
    && install --directory --owner=10001 --group=10001 /models
ENV PYTHONDONTWRITEBYTECODE=1 ACCEL_REPOSITORY=/models HOME=/tmp
USER 10001:10001
EXPOSE 8002 8003 8004
# No shell before it: tritonserver is process 1 and gets the SIGTERM.
ENTRYPOINT []
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=none", "--disable-auto-complete-config", "--http-port=8003", "--grpc-port=8004", "--metrics-port=8002"]
