"""Training steps: their time, beside the passes that they cannot do without, and their memory."""
