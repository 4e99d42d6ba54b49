"""The world: hosts real and simulated, behind one hardware abstraction layer."""
