"""What the queue carries, beside the physical limit and its peers: `python -m bench.queue`."""
