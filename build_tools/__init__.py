"""How the package is built: setup.py says what from; nothing of this is installed."""
