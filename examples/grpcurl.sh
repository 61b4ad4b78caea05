#!/usr/bin/env bash
# Streams an answer by gRPC, without any file of ours: the gateway describes itself by server reflection.
# examples/grpcurl.sh scene.png "Where is the red star?" [HOST:PORT]. Needs grpcurl and jq.
set -euo pipefail
picture=$1 question=$2 address=${3:-127.0.0.1:20050}

grpcurl -plaintext "$address" describe fsr.v1.GatewayService
base64 <"$picture" | tr -d '\n' | jq --raw-input --arg question "$question" '{
  messages: [{role: "ROLE_USER", parts: [{image: 0}, {text: $question}]}],
  images: [{data: .}],
  budget: {tokens: 16}
}' | grpcurl -plaintext -d @ "$address" fsr.v1.GatewayService/Generate
