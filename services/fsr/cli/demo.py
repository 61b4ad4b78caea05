"""`fsr demo`"""

from __future__ import annotations

import json
import os
import re
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fsr.cli.core_tools import run_core
from fsr.cli.local_stack import StartFailed, running
from fsr.cli.options import SCENE, AsJson, BudgetText, GatewayPort, SceneSeed, parse_budget
from fsr.cli.terminal import fail, plain
from fsr.cli.usage_table import usage_table
from fsr.client.errors import ClientError
from fsr.client.sync import Client

__all__ = ["demo"]

# What another system on this machine asks of callers, and its services of each other. The demo's has one caller, this
# process.
_OF_OTHERS = re.compile(r"FSR_(GATEWAY|ENCODER|DECODER)_(API_KEYS(_FILE)?|(\w+_)?TLS_\w+)")


def demo(
    budget: BudgetText = "16",
    seed: SceneSeed = SCENE,
    port: GatewayPort = 20050,
    as_json: AsJson = False,
) -> None:
    """Start all services, ask about a drawn scene with all tokens and with few, and show what was saved.

    example: fsr demo --budget 16
    """
    console, folder = Console(stderr=as_json), Path(tempfile.mkdtemp(prefix="fsr-demo-"))
    picture = folder / "scene.png"
    scene = json.loads(run_core(["fsr_core.tiny", "-o", str(picture), "--seed", str(seed), "--json"]))
    console.print(f"scene drawn: {picture}", highlight=False)
    rows: list[dict[str, str]] = []
    for name in filter(_OF_OTHERS.fullmatch, list(os.environ)):
        del os.environ[name]
    try:
        with ExitStack() as stack:
            with console.status("starting encoder, decoder and gateway"):
                services = running("fsr-tiny", 1, port, folder, start_seconds=None, report=plain(console))
                addresses = stack.enter_context(services)
            client = stack.enter_context(Client(addresses["gateway"]))
            for question in scene["questions"]:
                text = question["question"]
                whole = client.ask(picture, text, budget=1.0)
                few = client.ask(picture, text, budget=parse_budget(budget))
                answers = {"all_tokens": whole.text.strip(), "budget": few.text.strip()}
                rows.append({"question": text, "true_answer": question["answer"], **answers})
    except (StartFailed, ClientError) as error:
        fail(error)
    if as_json:
        print(json.dumps({"picture": str(picture), "budget": budget, "answers": rows, "usage": asdict(few.usage)}))
        return
    table = Table("question", "true answer", "all tokens", f"budget {budget}")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    console.print("saved on the last question:")
    console.print(usage_table(few.usage))
