# The gateway. It needs no torch, no ray and no fsr_core.
#   docker build -f deploy/docker/gateway.Dockerfile -t fsr-gateway .
ARG PYTHON=3.12.14-slim-bookworm@sha256:b64e9d3a71eddaa1b3f80c04abf292b3139e3b7c4dd272d19c31dc1f91194d1b

FROM python:${PYTHON} AS build
WORKDIR /src
COPY deploy/docker/requirements requirements
RUN python -m venv /opt/fsr \
    && /opt/fsr/bin/pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes --requirement requirements/gateway.txt
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY services services
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes --requirement requirements/build.txt \
    && /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /opt/wheels . \
    && /opt/fsr/bin/pip install --no-cache-dir --no-deps --no-index /opt/wheels/*.whl && /opt/fsr/bin/pip check

FROM python:${PYTHON}
RUN useradd --uid 10001 --no-create-home fsr
COPY --from=build /opt/fsr /opt/fsr
ENV PATH=/opt/fsr/bin:$PATH PYTHONUNBUFFERED=1 FSR_GATEWAY_HOST=0.0.0.0 FSR_GATEWAY_HEALTH_PORT=20049
USER 10001
EXPOSE 20049 20050 20052 9464
HEALTHCHECK --interval=5s --timeout=6s --start-period=20s CMD ["python", "-m", "fsr.common.health", "127.0.0.1:20049"]
ENTRYPOINT ["python", "-m", "fsr.gateway"]
