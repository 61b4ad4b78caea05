"""A share of requests is answered with all tokens too; what differs can be exported."""
