# A decoder replica with the vLLM engine (docs/decoders.md). It does not use constraints.txt: vLLM pins torch and needs
# other versions of many packages. pyproject.toml bounds vLLM's own version.
#   docker build -f deploy/docker/decoder-vllm.Dockerfile -t fsr-decoder-vllm .
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY fsr_core fsr_core
COPY services services
RUN python -m venv /opt/fsr && /opt/fsr/bin/pip install --no-cache-dir '.[vllm]'

FROM python:${PYTHON}
# Triton compiles its kernels when the engine starts.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home fsr
COPY --from=build /opt/fsr /opt/fsr
ENV PATH=/opt/fsr/bin:$PATH PYTHONUNBUFFERED=1 FSR_DECODER_HOST=0.0.0.0 FSR_DECODER_ENGINE=vllm
USER 10001
EXPOSE 20061 9465
HEALTHCHECK --interval=5s --timeout=6s --start-period=300s CMD ["python", "-m", "fsr.common.health", "127.0.0.1:20061"]
ENTRYPOINT ["python", "-m", "fsr.decoder"]
