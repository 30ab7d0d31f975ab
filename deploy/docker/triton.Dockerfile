# NVIDIA's Triton with this project's Python backend. 24.11 and newer have Python 3.12; pyt-python holds no other backends.
#   docker build --file deploy/docker/triton.Dockerfile --tag accel-triton:0.1.0 .
# Without a GPU, smaller: --build-arg EXTRAS=models,convert
ARG BASE=nvcr.io/nvidia/tritonserver:24.12-pyt-python-py3
# hadolint ignore=DL3006
FROM ${BASE} AS build
ARG EXTRAS=models,convert,tensorrt
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY accel_lib accel_lib
# hadolint ignore=DL3013
# Beside the system's packages, not among them: Triton's stub finds them by PYTHONPATH.
RUN python3 -m pip install --target=/opt/accel ".[${EXTRAS}]"

# hadolint ignore=DL3006
FROM ${BASE}
ENV PYTHONPATH=/opt/accel PATH=/opt/accel/bin:$PATH PYTHONDONTWRITEBYTECODE=1 ACCEL_REPOSITORY=/models HOME=/tmp
COPY --from=build /opt/accel /opt/accel
COPY --chown=10001:10001 model_repository /models
USER 10001:10001
EXPOSE 8002 8003 8004
# No shell before it: tritonserver is process 1 and gets the SIGTERM.
ENTRYPOINT []
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=none", "--disable-auto-complete-config", "--http-port=8003", "--grpc-port=8004", "--metrics-port=8002"]
