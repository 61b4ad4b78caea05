"""Chat requests as clients of OpenAI's API write them."""

import base64


def data_uri(file: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(file).decode()}"


def picture_part(file: bytes) -> dict:
    return {"type": "image_url", "image_url": {"url": data_uri(file)}}


def messages(question: str, *files: bytes) -> list[dict]:
    """One turn of the user: pictures, and the question about them."""
    parts = [picture_part(file) for file in files]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
