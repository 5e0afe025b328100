"""What the proxy does, for the monitoring that is there already: `prometheus` and `otel`, each an extra of its own."""
