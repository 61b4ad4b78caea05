"""The services: encoder, gateway, decoder, and the client that calls them."""
