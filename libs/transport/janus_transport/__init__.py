"""The exchange: framed tensors between workers over UCX or in process."""
