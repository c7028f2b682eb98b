"""Generated protobuf modules of KEDA's external-scaler contract; regenerate with `make protos`."""
