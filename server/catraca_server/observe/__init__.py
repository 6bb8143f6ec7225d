"""The audit, metrics and traces. Each implements a protocol of what notifies it; the composition root connects them."""
