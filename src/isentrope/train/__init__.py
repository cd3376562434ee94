"""Hosts: the places where control runs. Nothing here is imported by `import isentrope`."""
