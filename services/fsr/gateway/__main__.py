"""`python -m fsr.gateway`"""

from __future__ import annotations

import asyncio

from fsr.common.process.environment import exit_on, metrics_folder_problem
from fsr.common.process.hidden_arguments import hide
from fsr.common.process.memory import keep_common_blocks
from fsr.common.telemetry.logs import configure_logging
from fsr.common.telemetry.tracing import traces


def main() -> None:
    hide({"--api-keys": "FSR_GATEWAY_API_KEYS"})
    from fsr.gateway.options.settings import GatewaySettings
    from fsr.gateway.server import serve  # these take a while, in which `ps` would show the keys

    settings = GatewaySettings.load()
    exit_on(metrics_folder_problem())
    configure_logging("gateway", settings.log_level)
    keep_common_blocks()
    with traces("gateway", settings.otlp_endpoint) as tracer:
        asyncio.run(serve(settings, tracer))


if __name__ == "__main__":
    main()
