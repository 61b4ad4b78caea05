# The encoder on Ray Serve: alone with a local Ray, or as head and workers of a KubeRay cluster. torch as in
# decoder.Dockerfile.
#   docker build -f deploy/docker/encoder.Dockerfile -t fsr-encoder .
ARG PYTHON=3.12.14-slim-bookworm@sha256:b64e9d3a71eddaa1b3f80c04abf292b3139e3b7c4dd272d19c31dc1f91194d1b

FROM python:${PYTHON} AS build
WORKDIR /src
COPY deploy/docker/requirements requirements
RUN python -m venv /opt/fsr \
    && /opt/fsr/bin/pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes --requirement requirements/encoder.txt
ARG TORCH_INDEX=
RUN if [ -z "${TORCH_INDEX}" ]; \
    then /opt/fsr/bin/pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes --requirement requirements/torch.txt; \
    else /opt/fsr/bin/pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" "$(grep -o '^torch==[^ ;]*' requirements/torch.txt)"; fi
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY fsr_core fsr_core
COPY services services
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes --requirement requirements/build.txt \
    && /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /opt/wheels . \
    && /opt/fsr/bin/pip install --no-cache-dir --no-deps --no-index /opt/wheels/*.whl && /opt/fsr/bin/pip check

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
