# Adds the worker to the vendor's image with MagicMind; docs/howto/containers.md shows how to build and run it. No step was run on a card.
#   docker build -f docker/mlu.Dockerfile --build-arg BASE=IMAGE -t clipmlu-worker .
ARG BASE
# The image of cpu.Dockerfile: both sides then have the same version, which they check
ARG CLIPMLU=clipmlu

FROM ${CLIPMLU} AS clipmlu
RUN ["clipmlu", "worker", "--write", "/tmp/clipmlu_worker.pyz"]

FROM ${BASE}
COPY --from=clipmlu --chown=0:0 /tmp/clipmlu_worker.pyz /opt/clipmlu/clipmlu_worker.pyz
# The worker needs Python 3.7 or newer and NumPy, and says so here if the vendor's image lacks them; the SDK may need a card to be imported
RUN python3.7 -B /opt/clipmlu/clipmlu_worker.pyz --help > /dev/null \
    && mkdir -p /shared \
    && chown 65532:65532 /shared
# The same user as clipmlu's own image, because only the worker's user may connect to its socket
USER 65532:65532
WORKDIR /shared
STOPSIGNAL SIGTERM
# clipmlu asks the worker itself and sends its batches again; a connection that says nothing would be a line of the log each time
HEALTHCHECK NONE
ENTRYPOINT ["python3.7", "/opt/clipmlu/clipmlu_worker.pyz"]
CMD ["--serve", "unix:/shared/mlu.sock"]
