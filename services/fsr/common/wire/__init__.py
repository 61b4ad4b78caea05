"""Messages between the services: tensors in them, bounds on their size and fields, channels' options."""
