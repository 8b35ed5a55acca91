"""What an exported network scores, spends and loses."""
