"""Sealing, key derivation, recipients and signatures. No I/O and no layouts: bytes in, bytes out."""
