"""`python -m fsr.decoder`"""

from __future__ import annotations

import asyncio

from fsr.common.telemetry import configure_logging
from fsr.decoder.server import serve
from fsr.decoder.settings import DecoderSettings


def main() -> None:
    settings = DecoderSettings.load()
    configure_logging("decoder", settings.log_level)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
