"""What every Janus service shares: settings, gRPC server and channel, coordination, telemetry, errors."""
