# The encoder on Ray Serve: alone with a local Ray, or as head and workers of a KubeRay cluster. torch as in
# decoder.Dockerfile.
#   docker build -f deploy/docker/encoder.Dockerfile -t fsr-encoder .
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=
ENV PIP_EXTRA_INDEX_URL=${TORCH_INDEX}
WORKDIR /src
COPY pyproject.toml README.md LICENSE deploy/docker/constraints.txt ./
COPY protos protos
COPY fsr_core fsr_core
COPY services services
RUN python -m venv /opt/fsr && /opt/fsr/bin/pip install --no-cache-dir --constraint constraints.txt '.[encoder,otel]'

FROM python:${PYTHON}
# KubeRay's probes call wget. Its commands run in a login shell, and a login shell reads /etc/profile.d.
# hadolint ignore=DL3008,SC2016
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home fsr \
    && echo 'export PATH=/opt/fsr/bin:$PATH' > /etc/profile.d/fsr.sh
COPY --from=build /opt/fsr /opt/fsr
ENV PATH=/opt/fsr/bin:$PATH PYTHONUNBUFFERED=1 FSR_ENCODER_HOST=0.0.0.0 FSR_ENCODER_METRICS_PORT=9466
USER 10001
EXPOSE 20051 9466
HEALTHCHECK --interval=5s --timeout=6s --start-period=120s CMD ["python", "-m", "fsr.common.health", "--ray-serve", "127.0.0.1:20051"]
ENTRYPOINT ["python", "-m", "fsr.encoder"]
