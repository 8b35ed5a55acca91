"""Looking on while a model runs: which layers, which steps, which samples, and what they cost."""
