"""Who may call: keys, the file of keys, and how many requests of a caller run at once."""
