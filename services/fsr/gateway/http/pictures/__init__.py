"""The files of a request's pictures and videos."""
