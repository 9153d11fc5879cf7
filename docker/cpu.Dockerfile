# Serves a compiled bundle over HTTP on a CPU; docs/howto/containers.md shows how to build and run it:
#   docker build -f docker/cpu.Dockerfile -t clipmlu .
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
# The kernel that resizes images is compiled here, and needs a C library's headers only: any version of these packages.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md LICENSE CHANGELOG.md ./
COPY src src
# A mirror of the Python packages, such as https://HOST/simple; without it pip asks pypi.org
ARG PIP_INDEX_URL
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
# The packages of optional dependencies that the image holds, besides those that everything needs: such as serve,openvino,heif
ARG EXTRAS=serve
# pip compiles the bytecode, which a container whose root is read-only could not keep
RUN python -m venv --without-pip /opt/clipmlu \
    && wheel="$(echo /wheels/clipmlu-*.whl)" \
    && python -m pip --python /opt/clipmlu/bin/python install --no-cache-dir "${wheel}[${EXTRAS}]"

FROM ${BASE}
COPY --from=build /opt/clipmlu /opt/clipmlu
# Nothing but /tmp is written, and without it no class embeddings are kept between starts
ENV PATH=/opt/clipmlu/bin:$PATH \
    HOME=/tmp \
    CLIPMLU_CACHE_DIR=/tmp/clipmlu \
    PYTHONDONTWRITEBYTECODE=1
# A user of no name and no rights, as a number, so that Kubernetes sees that it is not root
USER 65532:65532
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["clipmlu"]
# Other machines reach the server, so it needs a key: a file that is mounted here
CMD ["serve", "model=/models", "--host", "0.0.0.0", "--api-key-file", "/run/secrets/clipmlu-api-key"]
