"""`python -m fsr.decoder`"""

from __future__ import annotations

import asyncio

from fsr.common.process.environment import exit_on, metrics_folder_problem
from fsr.common.process.lifecycle import check_port
from fsr.common.telemetry.logs import configure_logging
from fsr.common.telemetry.tracing import traces
from fsr.decoder.settings import DecoderSettings


def main() -> None:
    settings = DecoderSettings.load()
    exit_on(metrics_folder_problem())
    check_port(settings.host, settings.port)
    check_port(settings.host, settings.metrics_port, "--metrics-port")
    if settings.health_port is not None:
        check_port(settings.host, settings.health_port, "--health-port")
    configure_logging("decoder", settings.log_level)
    with traces("decoder", settings.otlp_endpoint) as tracer:
        from fsr.decoder.server import serve  # torch takes seconds: --help and a wrong option answer before

        asyncio.run(serve(settings, tracer))


if __name__ == "__main__":
    main()
