"""The commands, one file each: `add_arguments` adds the options, a function of the same name runs it."""
