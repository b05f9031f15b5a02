"""Below the routes: bodies in, errors and streams out, keys and limits, and the socket."""
