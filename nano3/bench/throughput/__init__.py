"""`nano3 bench throughput`: whole requests at a number of users, on an engine here or on a server."""
