"""The life of a service as a process: its settings, its environment, its start, its end."""
