# The gateway. It needs no torch, no ray and no fsr_core.
#   docker build -f deploy/docker/gateway.Dockerfile -t fsr-gateway .
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE deploy/docker/constraints.txt ./
COPY protos protos
COPY services services
RUN python -m venv /opt/fsr && /opt/fsr/bin/pip install --no-cache-dir --constraint constraints.txt '.[gateway,otel]'

FROM python:${PYTHON}
RUN useradd --uid 10001 --no-create-home fsr
COPY --from=build /opt/fsr /opt/fsr
ENV PATH=/opt/fsr/bin:$PATH PYTHONUNBUFFERED=1 FSR_GATEWAY_HOST=0.0.0.0 FSR_GATEWAY_HEALTH_PORT=20049
USER 10001
EXPOSE 20049 20050 20052 9464
HEALTHCHECK --interval=5s --timeout=6s --start-period=20s CMD ["python", "-m", "fsr.common.health", "127.0.0.1:20049"]
ENTRYPOINT ["python", "-m", "fsr.gateway"]
