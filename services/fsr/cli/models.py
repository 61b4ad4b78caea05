"""`fsr models`"""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from fsr.cli.connection import Connection, connects
from fsr.cli.options import AsJson
from fsr.cli.terminal import fail
from fsr.client.errors import ClientError
from fsr.common.requests.budget_text import budget_text
from fsr.v1 import gateway_pb2

__all__ = ["models"]


@connects
def models(connection: Connection, as_json: AsJson = False) -> None:
    """List the models that a gateway serves, and what a question gets that names neither budget nor method.

    example: fsr models --gateway 127.0.0.1:20050
    """
    try:
        with connection.open() as client:
            found = [_row(model) for model in client.models()]
    except ClientError as error:
        fail(error)
    if as_json:
        print(json.dumps(found))
    elif found:
        table = Table("model", "encoders", "decoders", "default budget", "default method")
        for row in found:
            table.add_row(*(str(row[name]) for name in ("model", "encoders", "decoders", "budget", "method")))
        Console().print(table)
        for row in found:
            print(f"methods of {row['model']}: {', '.join(row['methods']) or 'unknown while no encoder answers'}")
    else:
        fail("no model can be asked; encoders and decoders may be starting, or your key may be for none of them")


def _row(model: gateway_pb2.AvailableModel) -> dict[str, Any]:
    policy = model.policy
    return {
        "model": model.model,
        "encoders": model.encoders,
        "decoders": model.decoders,
        "budget": budget_text(policy.default_budget),
        "method": policy.default_method,
        "min_tokens": policy.bounds.min_tokens,
        "max_tokens": policy.bounds.max_tokens,
        "methods": list(model.methods),
    }
