"""All services on one machine: what runs, its processes, and the watch over them."""
