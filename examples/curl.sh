#!/usr/bin/env bash
# Streams an answer by HTTP: examples/curl.sh scene.png "Where is the red star?" [HOST:PORT]. Needs curl and jq.
set -euo pipefail
picture=$1 question=$2 address=${3:-127.0.0.1:20052}

base64 <"$picture" | tr -d '\n' | jq --raw-input --arg question "$question" '{
  stream: true,
  stream_options: {include_usage: true},
  fsr: {budget: 16},
  messages: [{role: "user", content: [
    {type: "image_url", image_url: {url: ("data:image/png;base64," + .)}},
    {type: "text", text: $question}]}]
}' | curl --silent --show-error --no-buffer --fail-with-body "http://$address/v1/chat/completions" \
  --header 'Content-Type: application/json' --data-binary @-
