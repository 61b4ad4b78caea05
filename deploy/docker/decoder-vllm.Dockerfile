# A decoder replica with the vLLM engine (docs/decoders.md). vLLM pins torch, and needs other versions of many packages than
# the other images.
#   docker build -f deploy/docker/decoder-vllm.Dockerfile -t fsr-decoder-vllm .
ARG PYTHON=3.12.14-slim-bookworm@sha256:b64e9d3a71eddaa1b3f80c04abf292b3139e3b7c4dd272d19c31dc1f91194d1b

FROM python:${PYTHON} AS build
WORKDIR /src
COPY deploy/docker/requirements requirements
RUN python -m venv /opt/fsr \
    && /opt/fsr/bin/pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes --requirement requirements/decoder-vllm.txt
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY fsr_core fsr_core
COPY services services
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes --requirement requirements/build.txt \
    && /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /opt/wheels . \
    && /opt/fsr/bin/pip install --no-cache-dir --no-deps --no-index /opt/wheels/*.whl && /opt/fsr/bin/pip check

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
