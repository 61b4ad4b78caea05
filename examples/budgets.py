"""How good are the answers with fewer visual tokens? python examples/budgets.py questions.jsonl 8 0.11 auto

Each line of the file is one question, and may say the right answer:
{"picture": "scene.png", "question": "Where is the red star?", "answer": "top right"}
Every question is asked with all tokens and with each budget: tokens (8), a share of them (0.11), or auto.
"""

import argparse
import json
import statistics
from pathlib import Path

from fsr.client import Client

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("questions", type=Path)
parser.add_argument("budgets", nargs="+")
parser.add_argument("--gateway", default="127.0.0.1:20050", help="HOST:PORT")
parser.add_argument("--method", help="compression method; default: the gateway's")
options = parser.parse_args()

questions = [json.loads(line) for line in options.questions.read_text().splitlines() if line.strip()]
whole = []  # answers with all tokens
print("budget    kept  right  as with all tokens  KV cache saved  prefill")
with Client(options.gateway) as client:
    for text in ["1.0", *options.budgets]:
        budget = text if text == "auto" else float(text) if "." in text else int(text)
        answers = []
        for question in questions:
            picture = options.questions.parent / question["picture"]
            answers.append(client.ask(picture, question["question"], budget=budget, method=options.method))
        texts = [answer.text.strip() for answer in answers]
        whole = whole or texts
        known = [
            (text, question["answer"]) for text, question in zip(texts, questions, strict=True) if "answer" in question
        ]
        right = f"{statistics.mean(text == answer for text, answer in known):.0%}" if known else "-"
        same = statistics.mean(text == other for text, other in zip(texts, whole, strict=True))
        kept = statistics.mean(answer.usage.visual_tokens_kept for answer in answers)
        saved = statistics.mean(answer.usage.kv_bytes_saved for answer in answers) / 2**20
        prefill = statistics.median(answer.usage.seconds["prefill"] for answer in answers) * 1000
        print(f"{text:8} {kept:5.0f} {right:>6} {same:19.0%} {saved:11.2f} MiB {prefill:5.0f} ms")
