# A decoder replica with the transformers engine. By default torch is the registry's wheel with its CUDA libraries. For a
# machine without a GPU, set TORCH_INDEX to the address of an index of CPU wheels. constraints.txt admits both builds.
#   docker build -f deploy/docker/decoder.Dockerfile -t fsr-decoder .
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=
ENV PIP_EXTRA_INDEX_URL=${TORCH_INDEX}
WORKDIR /src
COPY pyproject.toml README.md LICENSE deploy/docker/constraints.txt ./
COPY protos protos
COPY fsr_core fsr_core
COPY services services
RUN python -m venv /opt/fsr && /opt/fsr/bin/pip install --no-cache-dir --constraint constraints.txt '.[decoder,otel]'

FROM python:${PYTHON}
RUN useradd --uid 10001 --create-home fsr
COPY --from=build /opt/fsr /opt/fsr
ENV PATH=/opt/fsr/bin:$PATH PYTHONUNBUFFERED=1 FSR_DECODER_HOST=0.0.0.0
USER 10001
EXPOSE 20061 9465
HEALTHCHECK --interval=5s --timeout=6s --start-period=120s CMD ["python", "-m", "fsr.common.health", "127.0.0.1:20061"]
ENTRYPOINT ["python", "-m", "fsr.decoder"]
