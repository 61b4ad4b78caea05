"""The gateway: the front door that routes compressed tokens and streams answers."""
