"""A real model put to the probe: a text read once, and every entropy on the way, from the first layer to the last token."""
