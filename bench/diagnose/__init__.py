"""What is wrong with a server's KV cache, from the metrics, logs and events that it exposes."""
