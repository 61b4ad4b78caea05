"""Generated protobuf and gRPC code of the gateway's contracts; see the .proto files beside it."""
