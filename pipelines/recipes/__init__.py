"""The built-in recipes. This file makes them a package: what lies in a namespace cannot be listed once installed."""
