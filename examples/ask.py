"""Prints an answer as it comes, then what was saved.

python examples/ask.py scene.png "Where is the red star?" [HOST:PORT]
"""

import sys

from fsr.client import Client, ClientError

picture, question, *address = sys.argv[1:]
try:
    with Client(*address) as client:
        for chunk in client.stream(picture, question, budget=16):
            print(chunk.text, end="", flush=True)
except ClientError as error:
    sys.exit(f"error: {error}")
usage = chunk.usage
print(f"\n{usage.visual_tokens_kept} of {usage.visual_tokens_in} visual tokens", end=", ")
print(
    f"{usage.kv_bytes_saved / 1024:.0f} KiB of KV cache saved, first token after {usage.seconds['ttft'] * 1000:.0f} ms"
)
