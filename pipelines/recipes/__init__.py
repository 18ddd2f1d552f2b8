"""The built-in recipes. A package with a file of its own: what is in a namespace cannot be listed once it is installed."""
