# The gateway and the web UI: tokenizing, HTTP, metrics. No PyTorch and no GPU in it; models are computed by Triton.
#   docker build --file deploy/docker/gateway.Dockerfile --tag accel-gateway:0.2.0 .
FROM python:3.12.8-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
RUN python -m venv /opt/venv
COPY pyproject.toml README.md LICENSE ./
COPY deploy/docker/constraints.txt constraints.txt
COPY accel_lib accel_lib
COPY notebooks notebooks
# In place, so that the UI's notebook stays beside the package.
# hadolint ignore=DL3013
RUN /opt/venv/bin/pip install --constraint constraints.txt --editable ".[service,triton,ui]"

FROM python:3.12.8-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    ACCEL_REPOSITORY=/models ACCEL_HOST=0.0.0.0 ACCEL_STATE_FILE=/state/gateway.sqlite3 HOME=/tmp
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
RUN groupadd --gid 10001 accel && useradd --uid 10001 --gid 10001 --no-create-home accel \
    && install --directory --owner=10001 --group=10001 /state /models
USER 10001:10001
EXPOSE 8000 8001
# accel serve is process 1: a SIGTERM drains it.
ENTRYPOINT ["accel"]
CMD ["serve"]
