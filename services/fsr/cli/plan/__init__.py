"""`fsr plan`: how many GPUs a load needs, with and without compression."""
