"""Whose neurons an exported network is made of; one file a framework."""
