"""What the standard library says of executors, as tests; `agentcore.testing._conformance` puts them together."""
