"""A device with memory of its own, simulated on the CPU: what would fail on a GPU for a tensor's place fails there."""
