"""Which replica gets a request: discovery, pools, balancing, circuit breakers, retries."""
