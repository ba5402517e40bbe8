"""What people run: the command line, sound and pictures.

A command is a module with two functions: `add_command(commands)` adds its words and options to the parser (`commands`
is what `argparse`'s `add_subparsers` gave), `run(args)` carries it out (`args` are the parsed options).

Knows: the public package. Must not know: anything else; nothing in the package imports from here.
"""
