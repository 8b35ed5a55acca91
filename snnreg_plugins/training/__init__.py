"""How activity is shaped in training; callbacks say when."""
