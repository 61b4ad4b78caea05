"""Options of the command: their types, checks and the policy file."""
