"""How a spiking network runs."""
