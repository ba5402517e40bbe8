"""What people run: the command line, sound and pictures.

Knows the public package. Nothing in the package imports from here.
"""
