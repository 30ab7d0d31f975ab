# NVIDIA's Triton with this project's Python backend. 24.11 and newer have Python 3.12; pyt-python holds no other backends.
#   docker build --file deploy/docker/triton.Dockerfile --tag accel-triton:0.1.0 .
# Without a GPU, smaller: --build-arg EXTRAS=models,convert
# With your models in it (store.kind: image): FROM accel-triton:0.1.0, then COPY your_repository /models
ARG BASE=nvcr.io/nvidia/tritonserver:24.12-pyt-python-py3
# hadolint ignore=DL3006
FROM ${BASE} AS build
ARG EXTRAS=models,convert,tensorrt
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY deploy/docker/constraints.txt constraints.txt
COPY accel_lib accel_lib
# Beside the system's packages, not among them: Triton's stub finds them by PYTHONPATH.
# hadolint ignore=DL3013
RUN python3 -m pip install --target=/opt/accel --constraint constraints.txt ".[triton,${EXTRAS}]"

# hadolint ignore=DL3006
FROM ${BASE}
# /app is the checkout: accel build takes the repository's own model.py and config.pbtxt from there.
ENV PYTHONPATH=/app:/opt/accel PATH=/opt/accel/bin:$PATH PYTHONDONTWRITEBYTECODE=1 ACCEL_REPOSITORY=/models HOME=/tmp
COPY --from=build /opt/accel /opt/accel
COPY . /app
RUN install --directory --owner=10001 --group=10001 /models
USER 10001:10001
EXPOSE 8002 8003 8004
# No shell before it: tritonserver is process 1 and gets the SIGTERM.
ENTRYPOINT []
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=none", "--disable-auto-complete-config", "--http-port=8003", "--grpc-port=8004", "--metrics-port=8002"]
