"""A comparison on its way: from the request as typed to rounds of processes."""
