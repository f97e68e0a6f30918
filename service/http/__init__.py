"""Everything about HTTP: connections, routes, the server and its worker processes."""
