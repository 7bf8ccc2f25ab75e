"""Back up and restore a pharmacy's systems."""
