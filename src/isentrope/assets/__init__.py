"""Files that travel in the wheel: the embedded base model."""
