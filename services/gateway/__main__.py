"""`python -m services.gateway`"""

from __future__ import annotations

import asyncio

from services.gateway.server import serve
from services.gateway.settings import GatewaySettings
from services.telemetry import configure_logging


def main() -> None:
    settings = GatewaySettings.load()
    configure_logging("gateway", settings.log_level)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
