"""What LangChain's ChatOpenAI gets from a gateway, as JSON: langchain_chat.py URL KEY PICTURE"""

import base64
import json
import sys

import openai
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

url, key, file = sys.argv[1:]
with open(file, "rb") as picture:
    data = base64.b64encode(picture.read()).decode()
question = {"type": "text", "text": "What colour is the star?"}
as_openai_writes = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
as_langchain_writes = {"type": "image", "base64": data, "mime_type": "image/png"}


def conversation(part: dict) -> list:
    return [SystemMessage("Answer in one word."), HumanMessage([part, question])]


def model(**options) -> ChatOpenAI:
    body = {"ignore_eos": True, "fsr": {"budget": 16}}
    common = {"base_url": url, "api_key": key, "model": "fsr-tiny", "max_tokens": 20, "max_retries": 0}
    return ChatOpenAI(**common | {"extra_body": body, "stream_usage": True} | options)


answer = model().invoke(conversation(as_openai_writes))
chunks = list(model().stream(conversation(as_langchain_writes)))
whole = chunks[0]
for chunk in chunks[1:]:
    whole += chunk
errors = []
for options in ({"n": 2}, {"model": "missing"}, {"api_key": "wrong"}):
    try:
        model(**options).invoke(conversation(as_openai_writes))
    except openai.APIStatusError as error:
        errors.append({"status": error.status_code, "param": error.param})
print(
    json.dumps(
        {
            "text": answer.content,
            "usage": answer.usage_metadata,
            "finish_reason": answer.response_metadata["finish_reason"],
            "figures": answer.response_metadata["token_usage"].get("fsr"),
            "pieces": len(chunks),
            "streamed": whole.content,
            "streamed_usage": whole.usage_metadata,
            "errors": errors,
        }
    )
)
