"""Fields of OpenAI's API, and of vLLM's, that this service does not have.

A value that means "off" is the same as leaving the field out. Any other value would change the answer, so it is refused
by name. Fields that by their definition don't change the answer are accepted and have no effect.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fsr.common.errors import InvalidRequest

__all__ = ["MESSAGE", "REQUEST", "WITHOUT_EFFECT", "Unsupported", "without_unsupported"]

Unsupported = Mapping[str, tuple[tuple[Any, ...], str]]
"""Name of the field: the values that mean "off", besides null, and the remedy for any other."""

_LEAVE_OUT = "leave it out"
_NO_TOOLS = "this service calls no tools; " + _LEAVE_OUT
_TEXT_ONLY = "answers are plain text; " + _LEAVE_OUT
_SEVERAL = "send one request for each answer"

REQUEST: Unsupported = {
    # OpenAI
    "audio": ((), _TEXT_ONLY),
    "frequency_penalty": ((0, 0.0), "use repetition_penalty"),
    "function_call": (("none", "auto"), _NO_TOOLS),
    "functions": (([],), _NO_TOOLS),
    "logit_bias": (({},), _LEAVE_OUT),
    "modalities": ((["text"],), _TEXT_ONLY),
    "n": ((1,), _SEVERAL),
    "prediction": ((), _LEAVE_OUT),
    "presence_penalty": ((0, 0.0), "use repetition_penalty"),
    "reasoning_effort": (("none",), "the models served here do not reason; " + _LEAVE_OUT),
    "response_format": (({"type": "text"},), _TEXT_ONLY),
    "store": ((False,), "no answer is stored; " + _LEAVE_OUT),
    "tool_choice": (("none", "auto"), _NO_TOOLS),
    "tools": (([],), _NO_TOOLS),
    "verbosity": (("medium",), "set max_completion_tokens"),
    "web_search_options": ((), _LEAVE_OUT),
    # vLLM
    "add_generation_prompt": ((True,), _LEAVE_OUT),
    "add_special_tokens": ((False,), _LEAVE_OUT),
    "allowed_token_ids": ((), _LEAVE_OUT),
    "bad_words": (([],), _LEAVE_OUT),
    "best_of": ((1,), _SEVERAL),
    "cache_salt": ((), "each API key has a salt of its own; " + _LEAVE_OUT),
    "chat_template": ((), "the model's own template is used; " + _LEAVE_OUT),
    "chat_template_kwargs": (({},), "the model's own template is used; " + _LEAVE_OUT),
    "continue_final_message": ((False,), "the last message must be the user's"),
    "documents": (([],), "write them into the messages"),
    "echo": ((False,), _LEAVE_OUT),
    "guided_choice": ((), _TEXT_ONLY),
    "guided_grammar": ((), _TEXT_ONLY),
    "guided_json": ((), _TEXT_ONLY),
    "guided_regex": ((), _TEXT_ONLY),
    "include_stop_str_in_output": ((False,), _LEAVE_OUT),
    "length_penalty": ((1, 1.0), _LEAVE_OUT),
    "logits_processors": (([],), _LEAVE_OUT),
    "media_io_kwargs": (({},), "write fps beside the video's url"),
    "min_p": ((0, 0.0), "use top_p or top_k"),
    "min_tokens": ((0,), "use ignore_eos with max_completion_tokens"),
    "mm_processor_kwargs": (({},), "the encoder sets how pictures are prepared; " + _LEAVE_OUT),
    "priority": ((0,), _LEAVE_OUT),
    "prompt_logprobs": ((), "logprobs gives those of the answer"),
    "request_id": ((), "each response has an id of its own, in x-request-id"),
    "return_token_ids": ((False,), _LEAVE_OUT),
    "return_tokens_as_token_ids": ((False,), _LEAVE_OUT),
    "skip_special_tokens": ((True,), _LEAVE_OUT),
    "spaces_between_special_tokens": ((True, False), _LEAVE_OUT),
    "stop_token_ids": (([],), "use stop"),
    "structured_outputs": ((), _TEXT_ONLY),
    "truncate_prompt_tokens": ((), "shorten the messages"),
    "use_beam_search": ((False,), _LEAVE_OUT),
}
MESSAGE: Unsupported = {
    "annotations": (([],), _LEAVE_OUT),
    "audio": ((), _LEAVE_OUT),
    "function_call": ((), _NO_TOOLS),
    "name": ((), "chat templates have no place for it; write the name into the text"),
    "reasoning": ((), _LEAVE_OUT),
    "reasoning_content": ((), _LEAVE_OUT),
    "refusal": ((), "write it as content"),
    "tool_call_id": ((), _NO_TOOLS),
    "tool_calls": (([],), _NO_TOOLS),
}
"""Of a message. An answer of the official clients, sent back as a message, has most of them, as null or empty."""

WITHOUT_EFFECT = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "user",
)


def without_unsupported(
    body: Mapping[str, Any], table: Unsupported, without_effect: Collection[str] = (), prefix: str = ""
) -> dict[str, Any]:
    """The body without the fields of `without_effect`, and without those of `table` whose value means "off".

    Raises InvalidRequest for any other value.
    """
    kept = {}
    for name, value in body.items():
        if name in without_effect:
            continue
        if name not in table:
            kept[name] = value
            continue
        off, remedy = table[name]
        if value is not None and not any(type(value) is type(one) and value == one for one in off):
            raise InvalidRequest(f"{prefix}{name}: is not supported; {remedy}")
    return kept
