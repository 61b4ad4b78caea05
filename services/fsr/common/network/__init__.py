"""Addresses, ports and proxies; certificates and the options of TLS."""
